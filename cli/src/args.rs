//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand};
use forebay_crds::{GoDuration, parse_quantity};
use forebay_csi::mode::Wanted;
use forebay_csi::opens::DEFAULT_PERCENT;

/// Data in object stores, as fast as if it were on the GPU nodes.
#[derive(Debug, Parser)]
#[command(name = "forebay", version, propagate_version = true)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Shows Datasets: what is loaded, how often the cache answers, which source serves
    Status(StatusArgs),
    /// Mounts a Dataset on this machine, without Kubernetes
    Mount(MountArgs),
    /// Ends a mount that `forebay mount` made; its cache stays
    Umount(UmountArgs),
    /// Looks whether this machine can mount Datasets, and how; what is mounted, and what is missing
    Doctor(DoctorArgs),
}

/// `forebay status`.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  kubectl forebay status                     all Datasets of the current namespace
  kubectl forebay status -A                  of all namespaces
  kubectl forebay status icons               one, with its conditions and sources
  kubectl forebay status icons -w            its preload as a progress bar, until it is complete; a line every few
                                             seconds where the output is no terminal, as in a pipeline step
  kubectl forebay status icons -w --timeout 30m")]
pub struct StatusArgs {
    /// Name of the Dataset; all of the namespace when absent
    pub name: Option<String>,
    /// Namespace; the current context's when absent
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// All namespaces
    #[arg(short = 'A', long, conflicts_with_all = ["name", "namespace"])]
    pub all_namespaces: bool,
    /// Follow the preload until it is complete. Exit status 1 when the Dataset fails
    #[arg(short, long, requires = "name")]
    pub watch: bool,
    /// With --watch: give up after this long, with exit status 2
    #[arg(long, requires = "watch", value_parser = duration)]
    pub timeout: Option<Duration>,
}

/// `forebay mount`.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  forebay mount -f dataset.yaml /mnt/data --cache-dir /var/cache/forebay --capacity 100Gi
  forebay mount -f dataset.yaml /mnt/data --cache-dir /dev/shm/cache --capacity 4Gi --foreground
  forebay umount /mnt/data

The file holds a Dataset as kubectl would apply it, and its Secrets as ordinary documents; without a Secret the variables
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN are used, and without those, anonymous requests.
Needs root, for mounting.")]
pub struct MountArgs {
    /// File with the Dataset, and with Secrets where it names some; `-` reads standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
    /// Folder to mount at
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Folder of the cache; it outlives the mount. Give each Dataset its own: what another one left there is removed
    #[arg(long, value_name = "DIR")]
    pub cache_dir: PathBuf,
    /// How much the cache may hold, for instance 100Gi
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub capacity: u64,
    /// How the tree is mounted; the output says which it is, and why
    #[arg(long, value_enum, default_value_t)]
    pub mount_mode: Wanted,
    /// Part of the time, in percent, during which opens of cached files are watched in mode Kernel, so that eviction and the hit ratio know of them:
    /// a second at a time; 0 never
    #[arg(long, value_name = "PERCENT", default_value_t = DEFAULT_PERCENT, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub watch_opens: u8,
    /// Stay in the foreground; Ctrl-C ends the mount
    #[arg(long)]
    pub foreground: bool,
    /// Tell the mount's progress on standard output as JSON lines: for a mount in the background, which this program starts itself
    #[arg(long, hide = true, requires = "foreground")]
    pub report: bool,
    /// Serve /metrics, /healthz and /readyz at this address
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics: Option<SocketAddr>,
}

/// `forebay umount`.
#[derive(Debug, ClapArgs)]
pub struct UmountArgs {
    /// The folder it is mounted at
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

/// `forebay doctor`.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  sudo forebay doctor                                  this machine
  sudo forebay doctor --cache-dir /var/cache/forebay   and whether a cache can be there
  sudo forebay doctor --mount-mode kernel              whether it can do without mode Fuse

Each line says `ok`, `note` (it works, with less) or `missing`, what was found, and the next step. Exit status 1 when something
is missing. Without root it sees less.")]
pub struct DoctorArgs {
    /// A folder that holds a cache, or is to
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// The mount mode to check for
    #[arg(long, value_enum, default_value_t)]
    pub mount_mode: Wanted,
}

fn size(text: &str) -> Result<u64, String> {
    let bytes = parse_quantity(text).map_err(|error| error.to_string())?;
    if bytes == 0 { Err("a cache of 0 bytes can't hold anything".to_owned()) } else { Ok(bytes) }
}

fn duration(text: &str) -> Result<Duration, String> {
    GoDuration::from(text).value().map_err(|error| error.to_string())
}
