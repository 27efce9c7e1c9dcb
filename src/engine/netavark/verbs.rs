//! The verbs of the plugin API, each as requests to the daemon.

use std::path::Path;

use serde_json::{Map, Value};

use super::network::{Container, Network, completed, read};
use super::status::status;
use super::{Failure, rootless};
use crate::api::types::{Attached, WorkloadInfo};
use crate::engine::program::daemon::{self, Daemon, Publish};
use crate::engine::program::is_link;

/// What the daemon calls this engine.
const ENGINE: &str = "netavark";

/// `create`: the network as Podman is to keep it.
pub(super) async fn create(input: &[u8]) -> Result<Value, Failure> {
    let given: Map<String, Value> = read(input, "the network")?;
    let network: Network = read(input, "the network")?;
    let daemon = Daemon::new(network.socket()?, ENGINE);
    let subnet = daemon.subnet(network.subnet()?).await?;
    network.check(&subnet)?;
    Ok(completed(given, &subnet))
}

/// `setup`: the status block. The same once more tells the same; what fails in the middle of the first is taken back.
pub(super) async fn setup(netns: &str, input: &[u8]) -> Result<Value, Failure> {
    let of: Container = read(input, "the container")?;
    let (subnet, ports, aliases, ips) = (of.network.subnet()?, of.ports()?, of.aliases(), of.ips());
    let interface = of.wanted.interface.as_str();
    if !is_link(interface) {
        let shown: String = interface.chars().take(80).collect();
        let message = format!(
            "{shown:?} is no name of an interface: 1 to 15 letters, digits, '-', '_' and '.'"
        );
        return Err(Failure::new(message));
    }
    let daemon = Daemon::new(of.network.socket()?, ENGINE);
    let told = rootless::told(netns)?;
    let wanted = daemon::Wanted {
        container: &of.id,
        interface,
        netns: &told.path,
        network: &of.network.name,
        called: Some(of.name.as_str()).filter(|name| !name.is_empty()),
        ips: &ips,
        mac: of
            .wanted
            .static_mac
            .as_deref()
            .filter(|mac| !mac.is_empty()),
        aliases: &aliases,
    };
    let attached = daemon.attach(subnet, &wanted).await?;
    let made = complete(&daemon, subnet, &of, &ports, &attached).await;
    match made {
        Err(Failure(why)) if !attached.already => {
            // Netavark does not tear down what it could not set up.
            match daemon.release(&of.id, interface).await {
                Ok(()) => Err(Failure(why)),
                Err(error) => Err(Failure(format!("{why}; not taken back: {error}"))),
            }
        }
        made => made,
    }
}

/// Maps the ports that do not lead to the workload yet; its status.
async fn complete(
    daemon: &Daemon,
    subnet: &str,
    of: &Container,
    ports: &[Publish],
    attached: &Attached,
) -> Result<Value, Failure> {
    if attached.down {
        return Err(no_link(attached));
    }
    let known = match ports {
        [] => vec![],
        _ => daemon.maps(subnet).await?,
    };
    let name = attached.workload.as_str();
    for publish in ports {
        if !known.iter().any(|map| publish.is(map, name)) {
            daemon.map(subnet, publish, attached).await?;
        }
    }
    let found: Option<WorkloadInfo> = daemon.find(&of.id, &of.wanted.interface).await?;
    let workload =
        found.ok_or_else(|| Failure::new(format!("{name} was detached meanwhile; try again")))?;
    let link = workload.link.as_ref().ok_or_else(|| no_link(attached))?;
    Ok(status(&workload, link))
}

fn no_link(attached: &Attached) -> Failure {
    let (subnet, name) = (&attached.subnet, &attached.workload);
    Failure::new(format!(
        "subnet {subnet} is down, and {name} has no interface until it is up; try: byway up {subnet}"
    ))
}

/// `teardown`: what is not there, and a namespace that is gone, are no errors.
pub(super) async fn teardown(netns: &str, input: &[u8]) -> Result<(), Failure> {
    let of: Container = read(input, "the container")?;
    let daemon = Daemon::new(of.network.socket()?, ENGINE);
    let ended = daemon.end(&of.id, &of.wanted.interface, Path::new(netns));
    Ok(ended.await?)
}
