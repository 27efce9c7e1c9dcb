//! `integration`: byway as a part of the programs that run containers on this machine.

mod cni;
mod link;
mod podman;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::value::{self, Checked, wrong};
use super::{Context, Outcome};
use crate::api::types::{Error, Integration, Request, Response};
use crate::model::error::Code;

/// What byway can become a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    /// Docker, by its network and IPAM driver.
    Docker,
    /// Every runtime that calls CNI plugins: containerd, CRI-O, Kubernetes, Nomad.
    Cni,
    /// Podman, by the network driver that netavark runs.
    Podman,
}

fn engine(text: &str) -> Checked<Engine> {
    match text {
        "docker" => Ok(Engine::Docker),
        "cni" => Ok(Engine::Cni),
        "podman" => Ok(Engine::Podman),
        _ => Err(wrong(
            Code::Usage,
            format!(
                "{} is no engine that byway can become a part of: docker, cni, podman",
                value::shown(text)
            ),
        )),
    }
}

#[derive(Debug, Args)]
pub(super) struct InstallArgs {
    /// The engine: docker (its network and IPAM driver, also after restarts), cni (the plugin that runtimes call) or podman
    /// (the network driver of Podman 4.5 and newer: root's for all users, a user's in its own home)
    #[arg(value_parser = engine)]
    engine: Engine,
    /// docker: its socket, asked for names and labels of containers [default: DOCKER_HOST, else unix:///run/docker.sock]
    #[arg(long, value_name = "URL")]
    host: Option<String>,
    /// cni: where the plugin goes [default: those of /opt/cni/bin and /usr/lib/cni that there are]; podman: a directory called
    /// netavark, which podman is told of where it does not look there anyway [default: the first of podman's own]
    #[arg(long, value_name = "DIR")]
    dir: Vec<PathBuf>,
    /// cni: write the configuration of a network to this file, which must not be there yet
    #[arg(long, value_name = "FILE", requires = "subnet")]
    conf: Option<PathBuf>,
    /// cni: the subnet that its containers are put into
    #[arg(long, value_parser = value::subnet, value_name = "SUBNET", requires = "conf")]
    subnet: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct RemoveArgs {
    /// The engine: docker and podman (refused while they have networks over subnets) or cni
    #[arg(value_parser = engine)]
    engine: Engine,
    /// cni, podman: where the plugin is [default: /opt/cni/bin and /usr/lib/cni; where podman looks]
    #[arg(long, value_name = "DIR")]
    dir: Vec<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(super) enum IntegrationVerb {
    /// Make an engine use subnets as networks of its containers
    Install(InstallArgs),
    /// Take that back; configurations of the engine stay
    Remove(RemoveArgs),
}

/// How far a verb is.
pub(super) enum Begun {
    /// It is done, without a daemon.
    Done(Outcome),
    /// The daemon does it.
    Ask(Request),
}

/// An option that means nothing for that engine.
fn no_option(option: &str, engine: &str) -> Error {
    wrong(
        Code::Usage,
        format!("{option} means nothing with {engine}: byway integration --help"),
    )
}

pub(super) fn begin(verb: IntegrationVerb, context: &Context) -> Result<Begun, Error> {
    let done = match verb {
        IntegrationVerb::Install(args) => match args.engine {
            Engine::Docker if args.conf.is_some() => return Err(no_option("--conf", "docker")),
            Engine::Docker if !args.dir.is_empty() => return Err(no_option("--dir", "docker")),
            Engine::Docker => {
                // Where the person's own engine is, and not the daemon's.
                let own = || std::env::var("DOCKER_HOST").ok();
                let host = args.host.or_else(own).filter(|host| !host.is_empty());
                let engine = Integration::Docker;
                return Ok(Begun::Ask(Request::IntegrationInstall { engine, host }));
            }
            Engine::Cni if args.host.is_some() => return Err(no_option("--host", "cni")),
            Engine::Podman if args.conf.is_some() => return Err(no_option("--conf", "podman")),
            Engine::Podman if args.host.is_some() => return Err(no_option("--host", "podman")),
            Engine::Podman => podman::with_places(|places| podman::install(&args.dir, places))??,
            Engine::Cni => {
                let conf = args.conf.as_deref().zip(args.subnet.as_deref());
                cni::install(&args.dir, conf, context.socket.as_deref())?
            }
        },
        IntegrationVerb::Remove(args) => match args.engine {
            Engine::Docker if !args.dir.is_empty() => return Err(no_option("--dir", "docker")),
            Engine::Docker => {
                let engine = Integration::Docker;
                return Ok(Begun::Ask(Request::IntegrationRemove { engine }));
            }
            Engine::Cni => cni::remove(&args.dir)?,
            Engine::Podman => podman::with_places(|places| podman::remove(&args.dir, places))??,
        },
    };
    Outcome::of(&Response::Done(done), context.style).map(Begun::Done)
}
