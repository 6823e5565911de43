//! Seeing opens that pass no daemon: in mode Kernel the kernel itself reads complete objects, and without this the cache node would take for unused
//! what is read all day. fanotify tells of every open of an overlay's files, also in other mount namespaces, and makes opens of small files
//! dearer by a tenth to a half meanwhile. So it is asked for a second now and then, and each open that is seen stands for many.

use std::hash::{BuildHasher as _, RandomState};
use std::ops::{ControlFlow, Range};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use forebay_catalog::{ObjectId, TreeImage};
use forebay_fuse::NodeClient;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::fanotify::{EventFFlags, Fanotify, FanotifyEvent, InitFlags, MarkFlags, MaskFlags};

/// How long opens are watched at a time.
const WINDOW: Duration = Duration::from_secs(1);

/// After so many the window ends: what it shows is known, and each costs a descriptor.
const ENOUGH: usize = 20_000;

/// How long a cache node that has just been connected to may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// Object ids of one report: it is one packet.
const REPORT_OBJECTS: usize = 2000;

/// Part of the time, in percent, during which opens are watched unless it is said otherwise: it costs a hundredth of the opens of small files or less.
pub const DEFAULT_PERCENT: u8 = 3;

/// When opens are watched.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    period: Duration,
}

/// A mounted overlay whose opens are of interest.
#[derive(Debug)]
pub struct Watched {
    /// Where it is mounted.
    pub tree: PathBuf,
    /// Its Dataset.
    pub dataset_uid: String,
    /// The catalog's image that it shows: an inode's number leads to its object.
    pub image: TreeImage,
    /// The cache node that has the objects.
    pub node: NodeClient,
}

/// A window that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// When.
    pub end: Instant,
    /// Opens that were seen in it; none when they could not be watched.
    pub opens: Option<u64>,
}

/// What was seen of one overlay.
#[derive(Debug, Default)]
struct Seen {
    objects: Vec<ObjectId>,
    /// All opens that were seen, of files without content too.
    opens: usize,
}

impl Schedule {
    /// So many percent of the time; none: never.
    pub fn of_percent(percent: u8) -> Option<Self> {
        let percent = u32::from(percent.min(100));
        (percent > 0).then(|| Self { period: WINDOW * 100 / percent })
    }

    /// How long to wait for the next window: its place within a period is by chance, so that no reader's own rhythm hides it.
    pub fn pause(&self) -> Duration {
        let spare = self.period.saturating_sub(WINDOW);
        let part = RandomState::new().hash_one(0_u8) as f64 / u64::MAX as f64;
        // Twice a number between 0 and 1 is 1 on average.
        spare.mul_f64(part * 2.0)
    }

    /// Lets a window pass in which there is nothing to watch.
    pub async fn rest(&self) {
        tokio::time::sleep(WINDOW).await;
    }
}

/// Watches these overlays for one window, and tells their cache nodes what was opened: each open stands for those since the last window, whose end
/// was `since`. Gives this one.
pub async fn watch(since: Instant, trees: Vec<Watched>) -> Window {
    let watching = tokio::task::spawn_blocking(move || {
        let began = Instant::now();
        let seen = collect(&trees, began + WINDOW);
        (seen, began..Instant::now(), trees)
    });
    let (seen, window, trees) = match watching.await {
        Ok((Ok(seen), window, trees)) => (seen, window, trees),
        Ok((Err(errno), ..)) => {
            tracing::warn!(%errno, "opens of cached files can't be watched; the cache takes them for less used than they are");
            return Window { end: Instant::now(), opens: None };
        }
        Err(error) => {
            tracing::warn!(%error, "a thread panicked");
            return Window { end: Instant::now(), opens: None };
        }
    };
    let stands_for = weight(since, &window);
    let opens = seen.iter().map(|seen| seen.opens as u64).sum();
    for (tree, seen) in trees.iter().zip(seen) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        // When the node is away, what it is not told is a small part of what it does not see.
        if !seen.objects.is_empty() && tree.node.connection(deadline).await.is_ok() {
            for objects in seen.objects.chunks(REPORT_OBJECTS) {
                tree.node.report_opened(&tree.dataset_uid, objects, stands_for).await;
            }
        }
        tracing::debug!(tree = %tree.tree.display(), opens = seen.opens, stands_for, "watched the opens of a volume");
    }
    Window { end: window.end, opens: Some(opens) }
}

/// How many opens each stands for that was seen in this window.
fn weight(since: Instant, window: &Range<Instant>) -> u32 {
    let seconds = |begin: Instant| window.end.saturating_duration_since(begin).as_secs_f64().max(1e-3);
    (seconds(since) / seconds(window.start)).round().max(1.0) as u32
}

/// Each overlay has a group of its own: which one a file belongs to, its device number doesn't tell.
fn collect(trees: &[Watched], until: Instant) -> Result<Vec<Seen>, Errno> {
    let groups = trees.iter().map(|tree| group(&tree.tree)).collect::<Result<Vec<_>, _>>()?;
    let mut seen: Vec<_> = trees.iter().map(|_| Seen::default()).collect();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(seen);
        }
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        let mut waiting: Vec<_> = groups.iter().map(|group| PollFd::new(group.as_fd(), PollFlags::POLLIN)).collect();
        match poll(&mut waiting, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        let mut enough = false;
        for ((group, tree), seen) in groups.iter().zip(trees).zip(&mut seen) {
            match group.read_events() {
                Ok(events) => enough |= seen.take(tree, &events).is_break(),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        if enough {
            return Ok(seen);
        }
    }
}

/// Tells of the opens of an overlay's files, whatever mount of it they went by.
fn group(tree: &Path) -> Result<Fanotify, Errno> {
    let flags = InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK;
    let opened_as = EventFFlags::O_RDONLY | EventFFlags::O_LARGEFILE | EventFFlags::O_CLOEXEC;
    let group = Fanotify::init(flags, opened_as)?;
    let add = MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM;
    group.mark(add, MaskFlags::FAN_OPEN, rustix::fs::CWD, Some(tree))?;
    Ok(group)
}

impl Seen {
    /// Breaks when more happened than the queue holds, or than is worth knowing.
    fn take(&mut self, tree: &Watched, events: &[FanotifyEvent]) -> ControlFlow<()> {
        for event in events {
            // None: the queue was full.
            let Some(file) = event.fd() else { return ControlFlow::Break(()) };
            self.opens += 1;
            // A file's number is that of its inode in the image.
            let node = rustix::fs::fstat(file).map(|stat| tree.image.node(stat.st_ino));
            if let Ok(Ok(node)) = node
                && let Ok(Some(object)) = tree.image.object(&node)
            {
                self.objects.push(object);
            }
        }
        if self.opens < ENOUGH { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn windows_take_their_part_of_the_time_and_begin_by_chance() {
        assert!(Schedule::of_percent(0).is_none());
        let schedule = |percent| Schedule::of_percent(percent).unwrap();
        assert_eq!(schedule(100).pause(), Duration::ZERO);
        let pauses: Vec<_> = (0..1000).map(|_| schedule(2).pause().as_secs_f64()).collect();
        let mean = pauses.iter().sum::<f64>() / 1000.0;
        assert!((44.0..54.0).contains(&mean), "{mean}");
    }

    #[test]
    fn what_is_seen_stands_for_what_is_not() {
        let since = Instant::now();
        let weight =
            |begin, end| weight(since, &(since + Duration::from_millis(begin)..since + Duration::from_millis(end)));
        assert_eq!(weight(0, 1000), 1);
        assert_eq!(weight(32_200, 33_200), 33);
        assert_eq!(weight(33_100, 33_200), 332, "a window that ended early");
    }
}
