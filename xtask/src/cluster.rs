//! `cargo xtask cluster up|down|status`: the test cluster, managed by hand.

use anyhow::Result;
use clap::Subcommand;
use forebay_e2e::s3::{ENDPOINT, REGION};
use forebay_e2e::s3_client::Credentials;
use forebay_e2e::{Cluster, Options, S3Server, debian, paths};

#[derive(Subcommand)]
pub enum Action {
    /// Bring the cluster up (anew, if there is one)
    Up {
        /// How many nodes
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=200))]
        nodes: u8,
        /// Start an S3 server beside it
        #[arg(long)]
        s3: bool,
    },
    /// End every process of the cluster and remove all of its state
    Down,
    /// Say what runs
    Status,
}

impl Action {
    pub fn run(self) -> Result<()> {
        match self {
            Self::Up { nodes, s3 } => {
                let images = vec![debian::training_image()?];
                let cluster = Cluster::up(&Options { nodes, images, ..Options::default() })?;
                if s3 {
                    let server = S3Server::start(&cluster)?;
                    let Credentials { access_key, secret_key } = server.credentials();
                    println!(
                        "S3 for pods: {ENDPOINT}, region {REGION}, access key {access_key}, secret key {secret_key}"
                    );
                }
                println!("use it with {}", paths::kept().join("kubectl").display());
                Ok(())
            }
            Self::Down => Cluster::new(&Options::default()).down(),
            Self::Status => {
                println!("{}", Cluster::attach(&Options::default().name)?.status()?);
                Ok(())
            }
        }
    }
}
