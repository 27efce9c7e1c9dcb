//! The commands of the protocol, each as requests to the daemon.

use super::config::{Config, Mapping, Version, Wanted};
use super::environment::Attachment;
use super::failure::{AGAIN, CONFIG, ENVIRONMENT, Failure, IO, LIMITED, UNAVAILABLE, UNSUPPORTED};
use super::result::result;
use crate::api::types::{
    Attached, ErrorKind, PortRange, Request, Response, SubnetState, WorkloadInfo,
};
use crate::engine::program::daemon::{self, Daemon, Publish, bare_address, unexpected};
use crate::engine::program::namespace::{self, Namespace};

/// What the daemon calls this engine.
const ENGINE: &str = "cni";
/// The daemon knows the container or its interface, or does not, against what the runtime says.
const CONFLICT: u32 = 106;
/// What was attached is not as it was.
const CHANGED: u32 = 109;

/// One call: its configuration, and the daemon that it goes to.
#[derive(Debug)]
pub(super) struct Call {
    daemon: Daemon,
    config: Config,
}

impl Call {
    pub(super) fn new(config: Config) -> Call {
        Call {
            daemon: Daemon::new(config.socket.clone(), ENGINE),
            config,
        }
    }

    /// `ADD`: the result for standard output. What fails in the middle is taken back.
    pub(super) async fn add(&self, of: &Attachment) -> Result<serde_json::Value, Failure> {
        let subnet = self.config.subnet()?;
        let wanted = self.config.wanted()?;
        let resolver = self.config.resolver(&wanted)?;
        let ports = ports(&wanted)?;
        if self.config.former.is_some() && self.config.interface.is_none() {
            let message = "another plugin has made the interface: this one makes one of its own";
            let details = "\"interface\": \"byway0\" names it; or let this plugin be the first";
            return Err(Failure::new(CONFIG, message).details(details));
        }
        let attached = self.attach(of, subnet, &wanted).await?;
        let made = self.complete(of, subnet, &ports, &attached).await;
        let made = made.and_then(|workload| {
            let link = workload.link.as_ref().ok_or_else(|| no_link(&attached))?;
            let former = self.config.former.as_ref();
            let version = self.config.version;
            Ok(result(version, of, &workload, link, &resolver, former))
        });
        match made {
            Ok(result) => Ok(result),
            Err(failure) => Err(self.undone(of, failure).await),
        }
    }

    /// Attaches the container's interface, which must not be attached yet.
    async fn attach(
        &self,
        of: &Attachment,
        subnet: &str,
        wanted: &Wanted,
    ) -> Result<Attached, Failure> {
        let netns = of.netns.to_str().ok_or_else(|| {
            Failure::new(
                ENVIRONMENT,
                "CNI_NETNS is a path of bytes that are no UTF-8",
            )
        })?;
        let mac = wanted.mac.as_ref().or_else(|| of.args.get("MAC"));
        let ips = self.config.ips(wanted, of.args.get("IP"))?;
        let asked = daemon::Wanted {
            container: &of.container,
            interface: self.config.interface(&of.ifname),
            netns,
            network: &self.config.name,
            called: of.called(),
            ips: &ips,
            mac: mac.map(String::as_str),
            aliases: &wanted.aliases,
        };
        let attached = self.daemon.attach(subnet, &asked).await?;
        if attached.already {
            let message = format!(
                "{} of {} is attached already, as {}: ADD twice without DEL",
                attached.interface, of.container, attached.workload
            );
            return Err(Failure::new(CONFLICT, message));
        }
        Ok(attached)
    }

    /// Maps ports to a workload that was attached just now; how it is.
    async fn complete(
        &self,
        of: &Attachment,
        subnet: &str,
        ports: &[Publish],
        attached: &Attached,
    ) -> Result<WorkloadInfo, Failure> {
        if attached.down {
            return Err(no_link(attached));
        }
        for publish in ports {
            self.daemon.map(subnet, publish, attached).await?;
        }
        let gone = || {
            Failure::new(
                AGAIN,
                format!("{} was detached meanwhile", attached.workload),
            )
        };
        self.find(of).await?.ok_or_else(gone)
    }

    /// Takes back what `ADD` has made, for `failure`, which is what the runtime is told. It will call `DEL` as well.
    async fn undone(&self, of: &Attachment, failure: Failure) -> Failure {
        let interface = self.config.interface(&of.ifname);
        match self.daemon.release(&of.container, interface).await {
            Ok(()) => failure,
            Err(error) => Failure {
                details: format!("{}; not taken back: {error}", failure.details),
                ..failure
            },
        }
    }

    /// The workload of one interface of a container.
    async fn find(&self, of: &Attachment) -> Result<Option<WorkloadInfo>, Failure> {
        let interface = self.config.interface(&of.ifname);
        Ok(self.daemon.find(&of.container, interface).await?)
    }

    /// `DEL`. What is not there is no error.
    pub(super) async fn del(&self, of: &Attachment) -> Result<(), Failure> {
        let interface = self.config.interface(&of.ifname);
        let ended = self.daemon.end(&of.container, interface, &of.netns);
        Ok(ended.await?)
    }

    /// `CHECK`: whether the interface, its addresses and its ports are as `ADD` told.
    pub(super) async fn check(&self, of: &Attachment) -> Result<(), Failure> {
        self.config.version.has("CHECK", Version::V0_4_0)?;
        let subnet = self.config.subnet()?;
        let wanted = self.config.wanted()?;
        let Some(former) = &self.config.former else {
            return Err(Failure::new(CONFIG, "CHECK without a prevResult"));
        };
        let interface = self.config.interface(&of.ifname);
        let changed = |why: String| {
            let what = format!("{interface} of container {}: {why}", of.container);
            Err(Failure::new(CHANGED, what))
        };
        let Some(workload) = self.find(of).await? else {
            return changed("it is not attached".to_owned());
        };
        if UNUSABLE.contains(&workload.state.as_str()) {
            return changed(format!("its state is {}", workload.state));
        }
        let told = told_addresses(former);
        if let Some(other) = workload
            .addresses
            .iter()
            .find(|a| !told.contains(&a.to_string()))
        {
            return changed(format!("it has {other} now, which ADD did not tell"));
        }
        let inside = namespace::look(&of.netns, interface)
            .map_err(|error| Failure::new(IO, format!("look into CNI_NETNS: {error}")))?;
        let Namespace::Has(Some(inside)) = inside else {
            return changed("it is not in its namespace".to_owned());
        };
        if let Some(missing) = workload.addresses.iter().find(|a| !inside.contains(a)) {
            return changed(format!("{missing} is not on it"));
        }
        let ports = ports(&wanted)?;
        let maps = match &ports[..] {
            [] => vec![],
            _ => self.daemon.maps(subnet).await?,
        };
        for publish in &ports {
            if !maps
                .iter()
                .any(|map| publish.is(map, workload.workload.as_str()))
            {
                return changed(format!("port {} does not lead to it", publish.ports));
            }
        }
        Ok(())
    }

    /// `GC`: detaches what this network attached and the runtime does not know any more. It goes on after an error.
    pub(super) async fn gc(&self) -> Result<(), Failure> {
        self.config.version.has("GC", Version::V1_1_0)?;
        let Some(valid) = &self.config.valid else {
            let message = "GC without cni.dev/valid-attachments: nothing says what is still used";
            return Err(Failure::new(CONFIG, message));
        };
        let mut failed: Option<(Failure, usize)> = None;
        for workload in self.daemon.attached().await? {
            let Some(container) = workload.container.as_deref() else {
                continue;
            };
            // Where the configuration names the interface, the runtime's name is of another plugin's.
            let is_valid = valid.iter().any(|v| {
                v.container == container
                    && (self.config.interface.is_some() || v.ifname == workload.interface)
            });
            if is_valid || workload.network.as_deref() != Some(self.config.name.as_str()) {
                continue;
            }
            if let Err(error) = self.daemon.release(container, &workload.interface).await {
                let others = failed
                    .take()
                    .map_or(0, |(_, others)| others.saturating_add(1));
                failed = Some((error.into(), others));
            }
        }
        match failed {
            None => Ok(()),
            Some((failure, 0)) => Err(failure),
            Some((failure, others)) => {
                let details = format!("{}; and {others} more", failure.details);
                Err(failure.details(details))
            }
        }
    }

    /// `STATUS`: whether `ADD` can be served. Packets of the containers go through the daemon, so that without it, or with
    /// the subnet down, those that are attached reach nothing either.
    pub(super) async fn status(&self) -> Result<(), Failure> {
        self.config.version.has("STATUS", Version::V1_1_0)?;
        let subnet = self.config.subnet()?;
        self.config.wanted()?;
        let request = Request::Status {
            subnet: Some(subnet.to_owned()),
        };
        let told = match self.daemon.call(&request).await {
            Ok(Response::Status(status)) => status,
            Ok(other) => return Err(unexpected(&other).into()),
            Err(error) => {
                let code = match error.kind {
                    ErrorKind::NoDaemon => LIMITED,
                    _ => UNAVAILABLE,
                };
                return Err(Failure {
                    code,
                    ..error.into()
                });
            }
        };
        let state = told.subnets.first().map(|subnet| subnet.state);
        match state {
            Some(SubnetState::Ready) if told.ready => Ok(()),
            Some(SubnetState::Down) => {
                let message = format!("subnet {subnet} is down");
                Err(Failure::new(LIMITED, message).details(format!("try: byway up {subnet}")))
            }
            Some(SubnetState::Removed) => {
                let message = format!("this machine was removed from subnet {subnet}");
                Err(Failure::new(LIMITED, message))
            }
            _ => {
                let message = format!("the daemon is not ready for subnet {subnet}");
                Err(Failure::new(UNAVAILABLE, message).details("try: byway status"))
            }
        }
    }
}

/// States of a workload in which no packet reaches it.
const UNUSABLE: [&str; 4] = ["down", "not-member", "not-leased", "no-namespace"];

fn no_link(attached: &Attached) -> Failure {
    let message = format!(
        "subnet {} is down, and {} has no interface until it is up",
        attached.subnet, attached.workload
    );
    Failure::new(AGAIN, message).details(format!("try: byway up {}", attached.subnet))
}

/// The ports that are asked for, all of them looked at before anything is attached.
fn ports(wanted: &Wanted) -> Result<Vec<Publish>, Failure> {
    wanted.port_mappings.iter().map(Mapping::publish).collect()
}

/// The addresses in a result, without their prefix lengths.
fn told_addresses(result: &serde_json::Map<String, serde_json::Value>) -> Vec<String> {
    let ips = result.get("ips").and_then(serde_json::Value::as_array);
    let address = |ip: &serde_json::Value| {
        // In the kernel's spelling.
        Some(bare_address(ip.get("address")?.as_str()?)?.to_string())
    };
    ips.into_iter().flatten().filter_map(address).collect()
}

impl Mapping {
    /// The protocol, by the name that the daemon has for it.
    fn proto(&self) -> String {
        match self.protocol.as_str() {
            "" => "tcp".to_owned(),
            other => other.to_ascii_lowercase(),
        }
    }

    /// Where the machine listens; none for every address of both families.
    fn listen(&self) -> Result<Option<std::net::IpAddr>, Failure> {
        let wrong = |_| {
            let shown: String = self.host_ip.chars().take(80).collect();
            Failure::new(
                CONFIG,
                format!("portMappings: hostIP {shown:?} is no address"),
            )
        };
        match self.host_ip.as_str() {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(wrong),
        }
    }

    /// What the daemon is to map.
    fn publish(&self) -> Result<Publish, Failure> {
        let listen = self.listen()?;
        if !matches!(self.proto().as_str(), "tcp" | "udp") {
            let shown: String = self.protocol.chars().take(40).collect();
            let message = format!(
                "runtimeConfig.portMappings: protocol is {shown:?}: tcp and udp are mapped"
            );
            return Err(Failure::new(UNSUPPORTED, message));
        }
        let one = |port| PortRange::new(port, port);
        let (host, container) = (self.host_port, self.container_port);
        let (Some(ports), Some(target_ports)) = (one(host), one(container)) else {
            let message = format!("portMappings: {host} to {container}: a port is 1 to 65535");
            return Err(Failure::new(CONFIG, message));
        };
        Ok(Publish {
            proto: self.proto(),
            listen,
            ports,
            target_ports,
        })
    }
}
