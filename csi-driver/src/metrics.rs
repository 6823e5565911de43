//! The Prometheus metrics of a node's plugin, and of the FUSE daemon beside it, which has no network of its own and is asked by way of the broker.
//! Names are an interface; `docs/operations.md` lists them. What counts is counted where it happens; what there is now is asked for at each scrape.

use std::fmt::Debug;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use forebay_protocol::broker::{Count, Status};
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tonic::Code;

use crate::broker::Standing;
use crate::mode::Mode;

/// Upper bounds of durations, in seconds: a mount takes some milliseconds, and staging waits 15 s for a catalog or a daemon.
const BUCKETS: [f64; 11] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

/// What happens to the object FUSE's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// It was mounted.
    Made,
    /// A daemon gave it to a plugin that had been started anew.
    GivenBack,
    /// Nobody had it any more.
    Lost,
}

impl SessionEvent {
    fn label(self) -> &'static str {
        match self {
            Self::Made => "made",
            Self::GivenBack => "given_back",
            Self::Lost => "lost",
        }
    }
}

type Number = Gauge<u64, AtomicU64>;
/// Names and values of labels.
type Labels = Vec<(&'static str, String)>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    operation: &'static str,
    result: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    operation: &'static str,
}

/// What is counted. Clones are the same.
#[derive(Clone, Debug)]
pub struct Metrics {
    durations: Family<Call, Histogram, fn() -> Histogram>,
    running: Family<Operation, Gauge>,
    mode: Family<Labels, Number>,
    sessions: Family<Labels, Counter>,
    registrations: Family<Labels, Counter>,
    remounts: Counter,
    held: Family<Labels, Number>,
    cache_nodes: Family<Labels, Number>,
    windows: Family<Labels, Counter>,
    opens: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            durations: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            running: Family::default(),
            mode: Family::default(),
            sessions: Family::default(),
            registrations: Family::default(),
            remounts: Counter::default(),
            held: Family::default(),
            cache_nodes: Family::default(),
            windows: Family::default(),
            opens: Counter::default(),
        };
        // So that a first loss is seen as an increase.
        for event in [SessionEvent::Made, SessionEvent::GivenBack, SessionEvent::Lost] {
            drop(metrics.sessions.get_or_create(&one("event", event.label())));
        }
        metrics
    }
}

/// A call that runs. One that is given up counts as cancelled.
pub struct Running {
    metrics: Metrics,
    operation: &'static str,
    since: Instant,
    result: Code,
}

impl Running {
    /// It ends, with this result.
    pub fn end(mut self, result: Code) {
        self.result = result;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.metrics.running.get_or_create(&Operation { operation: self.operation }).dec();
        let call = Call { operation: self.operation, result: format!("{:?}", self.result) };
        self.metrics.durations.get_or_create(&call).observe(self.since.elapsed().as_secs_f64());
    }
}

impl Metrics {
    /// A call of the kubelet begins.
    pub fn begin(&self, operation: &'static str) -> Running {
        self.running.get_or_create(&Operation { operation }).inc();
        Running { metrics: self.clone(), operation, since: Instant::now(), result: Code::Cancelled }
    }

    /// How this node mounts: `Kernel`, `Fuse` or `None`.
    pub fn mount_mode(&self, mode: &str) {
        self.mode.clear();
        self.mode.get_or_create(&one("mode", mode)).set(1);
    }

    /// Something happened to the session.
    pub fn session(&self, event: SessionEvent) {
        self.sessions.get_or_create(&one("event", event.label())).inc();
    }

    /// A daemon asked for a file to be registered: whether it was, or its object is not complete; none when that failed.
    pub fn registration(&self, registered: Option<bool>) {
        let result = match registered {
            Some(true) => "registered",
            Some(false) => "not_complete",
            None => "failed",
        };
        self.registrations.get_or_create(&one("result", result)).inc();
    }

    /// So many trees were remounted to free evicted objects.
    pub fn remounted(&self, trees: u64) {
        self.remounts.inc_by(trees);
    }

    /// What is known of the cache of a runtime on this node.
    pub fn cache(&self, runtime: &str, there: bool, held_bytes: u64) {
        self.cache_nodes.get_or_create(&one("runtime", runtime)).set(there.into());
        self.held.get_or_create(&one("runtime", runtime)).set(held_bytes);
    }

    /// Nothing of this runtime is mounted any more.
    pub fn forget_cache(&self, runtime: &str) {
        self.cache_nodes.remove(&one("runtime", runtime));
        self.held.remove(&one("runtime", runtime));
    }

    /// Opens were watched for a window, in which so many were seen; none when that failed.
    pub fn window(&self, opens: Option<u64>) {
        let result = if opens.is_some() { "watched" } else { "failed" };
        self.windows.get_or_create(&one("result", result)).inc();
        self.opens.inc_by(opens.unwrap_or_default());
    }

    /// The text that Prometheus scrapes. `volumes`: how many are staged, and published, in each mode. `daemon`: what it says; none when it does not
    /// answer.
    pub fn render(&self, volumes: &[(Mode, usize, usize)], broker: Standing, daemon: Option<&Status>) -> String {
        // The library puts `_total` behind the names of counters.
        let mut registry = Registry::with_prefix("forebay");
        self.register(registry.sub_registry_with_prefix("csi"), volumes, broker);
        register_daemon(registry.sub_registry_with_prefix("fuse"), daemon);
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &registry) {
            tracing::error!(%error, "writing the metrics failed");
        }
        text
    }

    fn register(&self, registry: &mut Registry, volumes: &[(Mode, usize, usize)], broker: Standing) {
        let (staged, published) = (Family::<Labels, Number>::default(), Family::<Labels, Number>::default());
        for (mode, volumes, places) in volumes {
            staged.get_or_create(&one("mode", mode)).set(*volumes as u64);
            published.get_or_create(&one("mode", mode)).set(*places as u64);
        }
        registry.register("volumes", "Volumes that are staged, by how they are shown", staged);
        registry.register("published_volumes", "Places where pods see volumes, by how they are shown", published);
        registry.register("mount_mode", "1 for the mode in which this node mounts new volumes", self.mode.clone());
        registry.register(
            "operation_duration_seconds",
            "How long calls of the kubelet took, by the operation and its gRPC result",
            self.durations.clone(),
        );
        registry.register("operations_running", "Calls of the kubelet that are not answered yet", self.running.clone());
        registry.register("sessions", "What happened to FUSE sessions of this node", self.sessions.clone());
        registry.register("session_mounted", "1 while a FUSE session is mounted", number(broker.session.into()));
        registry.register(
            "session_served",
            "1 while a daemon serves the FUSE session that is mounted",
            number(broker.served.into()),
        );
        registry.register("daemons", "FUSE daemons that are connected", number(broker.daemons as u64));
        registry.register(
            "registrations",
            "Files that the daemon asked to have registered for reads by the kernel, by what came of it",
            self.registrations.clone(),
        );
        registry.register(
            "registered_files",
            "Files that this plugin has registered for reads by the kernel and not taken back",
            number(broker.registrations as u64),
        );
        registry.register("remounts", "Remounts that freed the space of evicted files", self.remounts.clone());
        registry.register(
            "held_bytes",
            "Bytes of evicted files that are still on the disk, as the runtime's cache node said last",
            self.held.clone(),
        );
        registry.register(
            "cache_node_connected",
            "1 while this node's cache node of a runtime whose Datasets are mounted is there",
            self.cache_nodes.clone(),
        );
        registry.register(
            "open_windows",
            "Windows in which opens of cached files were watched, or could not be",
            self.windows.clone(),
        );
        registry.register("opens_seen", "Opens that were seen in those windows", self.opens.clone());
    }
}

fn register_daemon(registry: &mut Registry, daemon: Option<&Status>) {
    registry.register("up", "1 when the daemon of this node answered", number(daemon.is_some().into()));
    let Some(daemon) = daemon else { return };
    registry.register(
        "worker_restarts",
        "Workers that the daemon's parent started after the first",
        count(daemon.worker_restarts),
    );
    registry.register(
        "stalled_seconds",
        "How long a request has kept a thread, or waited in the kernel while none was taken up; 0 when all is well",
        seconds(daemon.stall.as_ref().map_or(0, |stall| stall.milliseconds)),
    );
    registry.register(
        "requests",
        "Requests of the kernel that the worker took up, by kind",
        by(&daemon.requests, "kind"),
    );
    let answers = Family::<Labels, Counter>::default();
    answers.get_or_create(&one("when", "at_once")).inc_by(daemon.answered_at_once);
    answers.get_or_create(&one("when", "later")).inc_by(daemon.put_off);
    registry.register(
        "answers",
        "Requests that were answered by the thread that took them up, and those that had to wait for something",
        answers,
    );
    registry.register("waiting_requests", "Requests that wait for a cache node or a disk", number(daemon.waiting));
    registry.register("errors", "Answers with an error, by errno", by(&daemon.errors, "errno"));
    let opens = Family::<Labels, Counter>::default();
    opens.get_or_create(&one("mode", "passthrough")).inc_by(daemon.passthrough_opens);
    opens.get_or_create(&one("mode", "daemon")).inc_by(daemon.daemon_opens);
    registry.register("opens", "Opens of files, by who reads them: the kernel itself, or the daemon", opens);
    registry.register(
        "cache_node_connections",
        "Cache nodes that the daemon is connected to",
        number(daemon.cache_nodes),
    );
    registry.register(
        "cache_node_connections_lost",
        "Connections to cache nodes that ended",
        count(daemon.cache_nodes_lost),
    );
}

fn one(label: &'static str, value: &(impl ToString + ?Sized)) -> Labels {
    vec![(label, value.to_string())]
}

fn number(value: u64) -> impl EncodeMetric + Debug + Send + Sync + 'static {
    let gauge = Number::default();
    gauge.set(value);
    gauge
}

fn seconds(milliseconds: u64) -> impl EncodeMetric + Debug + Send + Sync + 'static {
    let gauge = Gauge::<f64, AtomicU64>::default();
    gauge.set(milliseconds as f64 / 1000.0);
    gauge
}

fn count(value: u64) -> impl EncodeMetric + Debug + Send + Sync + 'static {
    let counter = Counter::<u64, AtomicU64>::default();
    counter.inc_by(value);
    counter
}

fn by(counts: &[Count], label: &'static str) -> Family<Labels, Counter> {
    let family = Family::<Labels, Counter>::default();
    for Count { name, count } in counts {
        family.get_or_create(&one(label, name)).inc_by(*count);
    }
    family
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_out_exactly_as_promised() {
        let metrics = Metrics::default();
        metrics.begin("stage").end(Code::Unavailable);
        drop(metrics.begin("publish"));
        metrics.mount_mode("Fuse");
        metrics.mount_mode("Kernel");
        metrics.session(SessionEvent::Lost);
        metrics.registration(Some(true));
        metrics.registration(None);
        metrics.remounted(2);
        metrics.cache("ns.pool", true, 11);
        metrics.cache("ns.gone", true, 11);
        metrics.forget_cache("ns.gone");
        metrics.window(Some(7));
        metrics.window(None);
        let broker = Standing { session: true, served: false, daemons: 1, registrations: 3 };
        let counted = |name: &str, count| Count { name: name.into(), count };
        let daemon = Status {
            worker_restarts: 2,
            stall: Some(forebay_protocol::broker::Stall { milliseconds: 1500, what: String::new() }),
            requests: vec![counted("read", 5)],
            answered_at_once: 3,
            put_off: 4,
            waiting: 1,
            errors: vec![counted("EIO", 6)],
            passthrough_opens: 8,
            daemon_opens: 9,
            cache_nodes: 1,
            cache_nodes_lost: 2,
            ..Status::default()
        };
        let text = metrics.render(&[(Mode::Kernel, 2, 5), (Mode::Fuse, 0, 0)], broker, Some(&daemon));
        for line in [
            "forebay_csi_volumes{mode=\"Kernel\"} 2",
            "forebay_csi_published_volumes{mode=\"Kernel\"} 5",
            "forebay_csi_volumes{mode=\"Fuse\"} 0",
            "forebay_csi_mount_mode{mode=\"Kernel\"} 1",
            "forebay_csi_operation_duration_seconds_count{operation=\"stage\",result=\"Unavailable\"} 1",
            "forebay_csi_operation_duration_seconds_count{operation=\"publish\",result=\"Cancelled\"} 1",
            "forebay_csi_operations_running{operation=\"stage\"} 0",
            "forebay_csi_sessions_total{event=\"lost\"} 1",
            "forebay_csi_sessions_total{event=\"made\"} 0",
            "forebay_csi_session_mounted 1",
            "forebay_csi_session_served 0",
            "forebay_csi_daemons 1",
            "forebay_csi_registrations_total{result=\"registered\"} 1",
            "forebay_csi_registrations_total{result=\"failed\"} 1",
            "forebay_csi_registered_files 3",
            "forebay_csi_remounts_total 2",
            "forebay_csi_held_bytes{runtime=\"ns.pool\"} 11",
            "forebay_csi_cache_node_connected{runtime=\"ns.pool\"} 1",
            "forebay_csi_open_windows_total{result=\"watched\"} 1",
            "forebay_csi_open_windows_total{result=\"failed\"} 1",
            "forebay_csi_opens_seen_total 7",
            "forebay_fuse_up 1",
            "forebay_fuse_worker_restarts_total 2",
            "forebay_fuse_stalled_seconds 1.5",
            "forebay_fuse_requests_total{kind=\"read\"} 5",
            "forebay_fuse_answers_total{when=\"at_once\"} 3",
            "forebay_fuse_answers_total{when=\"later\"} 4",
            "forebay_fuse_waiting_requests 1",
            "forebay_fuse_errors_total{errno=\"EIO\"} 6",
            "forebay_fuse_opens_total{mode=\"passthrough\"} 8",
            "forebay_fuse_opens_total{mode=\"daemon\"} 9",
            "forebay_fuse_cache_node_connections 1",
            "forebay_fuse_cache_node_connections_lost_total 2",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        for gone in ["ns.gone", "mode=\"Fuse\"} 1"] {
            assert!(!text.contains(gone), "{gone} is in\n{text}");
        }
        let silent = metrics.render(&[], broker, None);
        assert!(silent.contains("forebay_fuse_up 0") && !silent.contains("forebay_fuse_requests"), "{silent}");
    }
}
