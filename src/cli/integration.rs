//! `integration`: engines that use subnets as networks of their own.

use clap::{Subcommand, ValueEnum};

use crate::api::types::{Integration, Request};

/// An engine that can be told to use this daemon.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Engine {
    /// Docker, by its network and IPAM driver: docker network create -d byway --ipam-driver byway
    Docker,
}

impl Engine {
    fn word(self) -> Integration {
        match self {
            Engine::Docker => Integration::Docker,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum IntegrationVerb {
    /// Have an engine use subnets as networks of its own, also after restarts
    Install {
        /// The engine
        #[arg(value_enum)]
        engine: Engine,
        /// Docker's socket, asked for names and labels of containers [default: DOCKER_HOST, else unix:///run/docker.sock]
        #[arg(long, value_name = "URL")]
        host: Option<String>,
    },
    /// Take it back; refused while the engine has such networks
    Remove {
        /// The engine
        #[arg(value_enum)]
        engine: Engine,
    },
}

impl IntegrationVerb {
    pub(super) fn request(self) -> Request {
        // Where the person's own engine is, and not the daemon's.
        let own = || std::env::var("DOCKER_HOST").ok();
        match self {
            IntegrationVerb::Install { engine, host } => Request::IntegrationInstall {
                engine: engine.word(),
                host: host.or_else(own).filter(|host| !host.is_empty()),
            },
            IntegrationVerb::Remove { engine } => Request::IntegrationRemove {
                engine: engine.word(),
            },
        }
    }
}
