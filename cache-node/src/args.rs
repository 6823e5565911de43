//! The command line of `forebay-node`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

const EXAMPLES: &str = "Examples:
  One node, as runtime.yaml says:
    forebay-node --config runtime.yaml
  In a pod, where it listens on all addresses and the others reach it at the pod's:
    forebay-node --config /etc/forebay/runtime.yaml --advertise $(POD_IP):7070
  As root in an init container, before a node without rights:
    forebay-node prepare --cache-dir /cache/training.gpu-pool --run-dir /var/lib/forebay/run

Environment:
  RUST_LOG    what is logged to stderr, as in info or forebay_cache_node=debug";

/// A Forebay cache node.
#[derive(Debug, Parser)]
#[command(name = "forebay-node", version, about = "Keeps objects of slow sources on this machine's disk and serves them to readers and other cache nodes", after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<SubArgs>,
    /// The node's whole desired state; applied again whenever it changes.
    #[arg(long, value_name = "FILE", required = true, env = "FOREBAY_CONFIG")]
    config: Option<PathBuf>,
    /// Where the other nodes reach this one, if not at the address it listens at.
    #[arg(long, value_name = "IP:PORT", env = "FOREBAY_ADVERTISE")]
    advertise: Option<SocketAddr>,
}

#[derive(Debug, Subcommand)]
enum SubArgs {
    /// As root: make the folders that a node without rights needs.
    Prepare {
        /// The node's cache folder; becomes the node user's, mode 0700.
        #[arg(long, value_name = "DIR")]
        cache_dir: PathBuf,
        /// The folder of the node's memory tier; becomes the node user's, mode 0700.
        #[arg(long, value_name = "DIR")]
        memory_dir: Option<PathBuf>,
        /// The folder of the sockets; becomes root's and the forebay group's, mode 0770.
        #[arg(long, value_name = "DIR", default_value = forebay_protocol::layout::RUN_DIR)]
        run_dir: PathBuf,
    },
}

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Run a node.
    Run {
        /// Its `runtime.yaml`.
        config: PathBuf,
        /// Where the others reach it.
        advertise: Option<SocketAddr>,
    },
    /// Make the folders.
    Prepare {
        /// The cache folder.
        cache_dir: PathBuf,
        /// The memory tier's folder, if there is one.
        memory_dir: Option<PathBuf>,
        /// The sockets' folder.
        run_dir: PathBuf,
    },
}

impl Args {
    /// Exactly one of the two.
    pub fn command(self) -> Command {
        match (self.command, self.config) {
            (Some(SubArgs::Prepare { cache_dir, memory_dir, run_dir }), _) => {
                Command::Prepare { cache_dir, memory_dir, run_dir }
            }
            (None, config) => Command::Run { config: config.unwrap_or_default(), advertise: self.advertise },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Args::try_parse_from(line.split(' ')).map(Args::command)
    }

    #[test]
    fn a_node_needs_its_config_and_prepare_does_not() {
        let run = parse("forebay-node --config r.yaml --advertise 10.0.0.1:7070").unwrap();
        assert_eq!(run, Command::Run { config: "r.yaml".into(), advertise: Some(([10, 0, 0, 1], 7070).into()) });
        assert!(parse("forebay-node").is_err());
        let prepare = parse("forebay-node prepare --cache-dir /c --run-dir /r").unwrap();
        assert_eq!(prepare, Command::Prepare { cache_dir: "/c".into(), memory_dir: None, run_dir: "/r".into() });
        let prepare = parse("forebay-node prepare --cache-dir /c --memory-dir /m").unwrap();
        assert!(matches!(prepare, Command::Prepare { memory_dir: Some(dir), .. } if dir == Path::new("/m")));
        assert!(parse("forebay-node prepare").is_err());
    }
}
