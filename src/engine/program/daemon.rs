//! The requests of a plugin to the daemon, in the words of the control socket.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::namespace::{self, Namespace};
use crate::api::client::Client;
use crate::api::types::{
    Attached, Error, ErrorKind, MapInfo, PortRange, Request, Response, SubnetInfo, WorkloadInfo,
};

/// The daemon, as one engine asks it.
#[derive(Debug)]
pub(in crate::engine) struct Daemon {
    client: Client,
    /// What the daemon calls the engine.
    engine: &'static str,
}

/// What an interface of a container is to have.
#[derive(Debug, Clone)]
pub(in crate::engine) struct Wanted<'a> {
    pub container: &'a str,
    pub interface: &'a str,
    pub netns: &'a str,
    /// What the engine calls the network.
    pub network: &'a str,
    /// What people call the container; the beginning of its ID where that is not told.
    pub called: Option<&'a str>,
    pub ips: &'a [IpAddr],
    pub mac: Option<&'a str>,
    pub aliases: &'a [String],
}

/// Ports of this machine that lead to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::engine) struct Publish {
    /// `tcp` or `udp`.
    pub proto: String,
    /// Where the machine listens; none for every address of both families.
    pub listen: Option<IpAddr>,
    pub ports: PortRange,
    pub target_ports: PortRange,
}

impl Publish {
    /// Whether a map is this one, to the workload of that name.
    pub(in crate::engine) fn is(&self, map: &MapInfo, workload: &str) -> bool {
        let to_it = map
            .target
            .strip_prefix(workload)
            .is_some_and(|rest| rest.starts_with('.'));
        let listens = match map.listens() {
            Some((at, ports)) => ports == self.ports && self.listen.is_none_or(|own| own == at),
            None => false,
        };
        to_it
            && listens
            && map.proto.to_string() == self.proto
            && map.target_ports() == Some(self.target_ports)
    }
}

impl Daemon {
    /// The daemon at that socket.
    pub(in crate::engine) fn new(socket: impl Into<PathBuf>, engine: &'static str) -> Daemon {
        Daemon {
            client: Client::new(socket),
            engine,
        }
    }

    /// Asks for what only the model's names can say: as JSON, which is read here as it is on the socket.
    async fn ask(&self, request: serde_json::Value) -> Result<Response, Error> {
        let request: Request = serde_json::from_value(request).map_err(|error| {
            let message = format!("what is asked for: {error}");
            Error::new(ErrorKind::Usage, "E-REQUEST", message)
        })?;
        self.call(&request).await
    }

    /// Asks the daemon.
    pub(in crate::engine) async fn call(&self, request: &Request) -> Result<Response, Error> {
        self.client.call(request).await
    }

    /// Attaches an interface of a container. The same once more is no error: the answer says so.
    pub(in crate::engine) async fn attach(
        &self,
        subnet: &str,
        wanted: &Wanted<'_>,
    ) -> Result<Attached, Error> {
        let container = json!({
            "engine": self.engine,
            "container": wanted.container,
            "interface": wanted.interface,
            "netns": wanted.netns,
            "network": wanted.network,
            "called": wanted.called,
            "ips": wanted.ips,
            "aliases": wanted.aliases,
        });
        let request = json!({
            "verb": "attach",
            "workload": {"container": container},
            "subnet": subnet,
            "name": null,
            "ip": null,
            "mac": wanted.mac,
        });
        match self.ask(request).await? {
            Response::Attached(attached) => Ok(attached),
            other => Err(unexpected(&other)),
        }
    }

    /// Leads ports of this machine to a workload, with which they go.
    pub(in crate::engine) async fn map(
        &self,
        subnet: &str,
        publish: &Publish,
        to: &Attached,
    ) -> Result<(), Error> {
        let request = json!({
            "verb": "map-add",
            "subnet": subnet,
            "proto": publish.proto,
            "listen": publish.listen,
            "ports": publish.ports,
            "target": to.workload,
            "target_ports": publish.target_ports,
            "name": null,
            "allow": [],
            "workload": to.workload,
        });
        self.ask(request).await.map(drop)
    }

    /// Detaches an interface of a container. It is no error where there is none.
    pub(in crate::engine) async fn release(
        &self,
        container: &str,
        interface: &str,
    ) -> Result<(), Error> {
        let request = json!({
            "verb": "detach-container",
            "engine": self.engine,
            "container": container,
            "interface": interface,
        });
        self.ask(request).await.map(drop)
    }

    /// The same for a container that ends. While no daemon answers it succeeds where nothing of ours is in the namespace,
    /// or that is gone: the daemon itself frees what belongs to a namespace that is gone, once it is back.
    ///
    /// # Errors
    /// As [`release`](Daemon::release). The interface may be in a container that lives, and its address in use: then the
    /// engine is told to try again.
    pub(in crate::engine) async fn end(
        &self,
        container: &str,
        interface: &str,
        netns: &Path,
    ) -> Result<(), Error> {
        let Err(error) = self.release(container, interface).await else {
            return Ok(());
        };
        let nothing = || {
            matches!(
                namespace::look(netns, interface),
                Ok(Namespace::Gone | Namespace::Has(None))
            )
        };
        if error.kind == ErrorKind::NoDaemon && nothing() {
            return Ok(());
        }
        Err(error)
    }

    /// The workloads that this engine has attached.
    pub(in crate::engine) async fn attached(&self) -> Result<Vec<WorkloadInfo>, Error> {
        match self.call(&Request::WorkloadLs).await? {
            Response::Workloads { mut workloads } => {
                workloads.retain(|w| w.kind == self.engine);
                Ok(workloads)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// The workload of one interface of a container.
    pub(in crate::engine) async fn find(
        &self,
        container: &str,
        interface: &str,
    ) -> Result<Option<WorkloadInfo>, Error> {
        let is = |w: &WorkloadInfo| {
            w.container.as_deref() == Some(container) && w.interface == interface
        };
        Ok(self.attached().await?.into_iter().find(is))
    }

    /// The port maps of a subnet.
    pub(in crate::engine) async fn maps(&self, subnet: &str) -> Result<Vec<MapInfo>, Error> {
        let request = Request::MapLs {
            subnet: Some(subnet.to_owned()),
        };
        match self.call(&request).await? {
            Response::Maps { maps } => Ok(maps),
            other => Err(unexpected(&other)),
        }
    }

    /// A subnet, by name or ID.
    pub(in crate::engine) async fn subnet(&self, subnet: &str) -> Result<SubnetInfo, Error> {
        let request = Request::SubnetShow {
            subnet: subnet.to_owned(),
        };
        match self.call(&request).await? {
            Response::Subnet(info) => Ok(*info),
            other => Err(unexpected(&other)),
        }
    }
}

/// The daemon said something that answers no such request.
pub(in crate::engine) fn unexpected(response: &Response) -> Error {
    let shown: String = format!("{response:?}").chars().take(80).collect();
    let message = format!("the daemon answered something else: {shown}");
    Error::new(ErrorKind::Failed, "E-API", message)
}

/// An address with an optional prefix length behind it, which is the subnet's matter.
pub(in crate::engine) fn bare_address(text: &str) -> Option<IpAddr> {
    let bare = text.split_once('/').map_or(text, |(ip, _)| ip);
    bare.parse().ok()
}
