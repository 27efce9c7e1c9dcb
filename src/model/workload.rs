//! A workload as this node keeps it: what was attached, where it lives, and what goes with it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::error::{Code, Error, Kind, Result};
use super::followed::Why;
use super::host::{NetnsRef, ResolvConf, is_link_name};
use super::id::Name;
use super::members::printable;

/// How a workload was found, for people and for finding it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// A network namespace, by its name or path.
    Netns(String),
    /// A container of the Docker engine: its name and full ID.
    Docker {
        /// The container's name as the engine shows it.
        name: String,
        /// The container's full ID, 64 hex digits.
        id: String,
    },
    /// A container as an engine tells of it, which may have several workloads: one for each of its interfaces.
    Engine {
        /// The engine that told of it: `cni`, `netavark` and others.
        engine: Name,
        /// The engine's ID of the container.
        container: String,
    },
    /// A container of Podman: its name and full ID.
    Podman {
        /// The container's name as Podman shows it.
        name: String,
        /// The container's full ID, 64 hex digits.
        id: String,
    },
    /// A TAP device of this machine, which a virtual machine opens.
    Tap {
        /// The name that it was attached by; the device is called `bwv-NAME`.
        name: String,
        /// The user who may open the device, beside root.
        owner: u32,
    },
    /// The same as [`Target::Engine`] of a user who is not root. What another user calls the same is another container.
    OfUser {
        /// The user who had it attached, and who alone may name it beside root.
        user: u32,
        /// The engine or program that told of it: `netavark`, `run`.
        engine: Name,
        /// That engine's ID of the container.
        container: String,
    },
}

/// Begins the name of every TAP device of ours: that of all links to workloads, then a dash, which no other has there.
const TAP_PREFIX: &str = "bwv-";

/// Whether a link may be a TAP of ours, by its name.
pub fn is_tap_link(link: &str) -> bool {
    is_link_name(link)
        && link
            .strip_prefix(TAP_PREFIX)
            .is_some_and(|name| !name.is_empty())
}

/// Longest ID of a container that is taken, in bytes.
const MAX_CONTAINER: usize = 255;

impl Target {
    /// A container of an engine, and the name of its interface looked at.
    ///
    /// # Errors
    /// `E-CONTAINER` where that is no ID of a container, `E-INTERFACE` where a link cannot be called that.
    pub fn of_engine(engine: Name, container: String, interface: &str) -> Result<Target> {
        let wrong = |code, message: String| Err(Error::new(Kind::Usage, code, message));
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if !(1..=MAX_CONTAINER).contains(&container.len()) || !container.bytes().all(plain) {
            let what = "1 to 255 letters, digits, '-', '_' and '.'";
            return wrong(
                Code::Container,
                format!("{} is no ID of a container: {what}", printable(&container)),
            );
        }
        // Every namespace has its loopback, and the kernel keeps the last two for its switches of all links.
        let kept = matches!(interface, "." | ".." | "lo" | "all" | "default");
        if !is_link_name(interface) || kept {
            let what = "1 to 15 letters, digits, '-', '_' and '.', and not lo, all or default";
            return wrong(
                Code::Interface,
                format!(
                    "{} is no name of an interface: {what}",
                    printable(interface)
                ),
            );
        }
        Ok(Target::Engine { engine, container })
    }

    /// A TAP device by its name, which the kernel's own name of the device ends with.
    ///
    /// # Errors
    /// `E-INTERFACE` where no device can be called that: 1 to 11 letters, digits, `-`, `_` and `.`.
    pub fn of_tap(name: String, owner: u32) -> Result<Target> {
        if !is_tap_link(&format!("{TAP_PREFIX}{name}")) {
            let what = "1 to 11 letters, digits, '-', '_' and '.'";
            let message = format!("{} is no name of a TAP: {what}", printable(&name));
            return Err(Error::new(Kind::Usage, Code::Interface, message));
        }
        Ok(Target::Tap { name, owner })
    }

    /// The same container as one of a user's. Any other target is nobody's in particular, and stays as it is.
    #[must_use]
    pub fn of(self, user: u32) -> Target {
        match self {
            Target::Engine { engine, container } => Target::OfUser {
                user,
                engine,
                container,
            },
            other => other,
        }
    }

    /// The user, other than root, who had the container attached.
    pub fn user(&self) -> Option<u32> {
        match self {
            Target::OfUser { user, .. } => Some(*user),
            _ => None,
        }
    }

    /// What its device is called, where it is a TAP.
    pub fn tap_link(&self) -> Option<String> {
        match self {
            Target::Tap { name, .. } => Some(format!("{TAP_PREFIX}{name}")),
            _ => None,
        }
    }

    /// The user who may open its device, where it is a TAP.
    pub fn tap_owner(&self) -> Option<u32> {
        match self {
            Target::Tap { owner, .. } => Some(*owner),
            _ => None,
        }
    }

    /// Whether its engine moves the workload's link into the container's namespace by itself, and names it.
    pub fn moves_links(&self) -> bool {
        matches!(self, Target::Engine { engine, .. } if engine.as_str() == DOCKER)
    }

    /// What is known of one that is followed and whose namespace has ended: a namespace is gone then, a container may only
    /// be stopped.
    pub fn once_ended(&self) -> Why {
        match self {
            Target::Netns(_) => Why::Removed,
            _ => Why::Stopped,
        }
    }

    /// Name and ID of a container that is followed at its engine.
    pub fn followed(&self) -> Option<(&str, &str)> {
        match self {
            Target::Docker { name, id } | Target::Podman { name, id } => Some((name, id)),
            Target::Netns(_)
            | Target::Engine { .. }
            | Target::Tap { .. }
            | Target::OfUser { .. } => None,
        }
    }

    /// Another container of the same engine, where this is one that is followed.
    pub fn follows(&self, name: String, id: String) -> Option<Target> {
        match self {
            Target::Docker { .. } => Some(Target::Docker { name, id }),
            Target::Podman { .. } => Some(Target::Podman { name, id }),
            Target::Netns(_)
            | Target::Engine { .. }
            | Target::Tap { .. }
            | Target::OfUser { .. } => None,
        }
    }

    /// `netns`, `docker`, `podman`, `tap`, or what the engine calls itself.
    pub fn kind(&self) -> &str {
        match self {
            Target::Netns(_) => "netns",
            Target::Docker { .. } => "docker",
            Target::Podman { .. } => "podman",
            Target::Tap { .. } => "tap",
            Target::Engine { engine, .. } | Target::OfUser { engine, .. } => engine.as_str(),
        }
    }

    /// The engine's ID of the container, where it is one.
    pub fn container(&self) -> Option<&str> {
        match self {
            Target::Netns(_) | Target::Tap { .. } => None,
            Target::Docker { id, .. } | Target::Podman { id, .. } => Some(id),
            Target::Engine { container, .. } | Target::OfUser { container, .. } => Some(container),
        }
    }

    /// What people are shown of it: as [`Target::text`], but a program of `byway run` by its name and process number.
    pub fn shown(&self) -> String {
        self.program().unwrap_or_else(|| self.text().to_owned())
    }

    /// The program that it is, by its name and process number, where `byway run` began it.
    pub fn program(&self) -> Option<String> {
        match self {
            Target::Engine { engine, container }
            | Target::OfUser {
                engine, container, ..
            } if engine.as_str() == RUN => program(container),
            _ => None,
        }
    }

    /// The text that people know it by: the namespace or TAP as it was given, the container's name, or its
    /// engine's ID of it.
    pub fn text(&self) -> &str {
        match self {
            Target::Netns(spec) => spec,
            Target::Docker { name, .. }
            | Target::Podman { name, .. }
            | Target::Tap { name, .. } => name,
            Target::Engine { container, .. } | Target::OfUser { container, .. } => container,
        }
    }
}

/// What `byway run` calls itself as an engine. Its ID of a program is the process number, when that started in clock ticks
/// since the machine did, and what the program is called, with dashes in between.
pub const RUN: &str = "run";

/// The program that an ID of [`RUN`] is about, for people: `sleep (pid 4711)`. Any other text is none.
fn program(id: &str) -> Option<String> {
    let mut parts = id.splitn(3, '-');
    let number = |part: Option<&str>| part?.parse::<u64>().ok();
    let (pid, _started) = (number(parts.next())?, number(parts.next())?);
    Some(match parts.next() {
        Some(called) => format!("{called} (pid {pid})"),
        None => format!("pid {pid}"),
    })
}

/// The engine that moves links into its containers by itself: Docker, by its network driver.
pub const DOCKER: &str = "docker";

/// Name of a workload's end of its pair while that waits for the engine.
pub fn stage_link(host_link: &str) -> String {
    format!("bwi{}", host_link.strip_prefix("bwv").unwrap_or(host_link))
}

/// A workload attached here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Name of the workload, unique in the subnet on this node.
    pub name: Name,
    /// The namespace, container or TAP that was attached.
    pub target: Target,
    /// Its namespace; none of a TAP, and none while the engine has not made one. A workload that waits for its engine has
    /// its lease and its names, and nothing in the kernel: what is sent to it is answered as unreachable.
    #[serde(with = "placed")]
    pub netns: Option<NetnsRef>,
    /// Name of the host end of its veth pair, or of its TAP.
    pub host_link: String,
    /// Name of the interface in its namespace, or of its TAP. With the container ([`Target::container`]) it says
    /// which attachment this is.
    pub inner_link: String,
    /// Its addresses, inside this node's leases.
    pub addresses: Vec<IpAddr>,
    /// The file that names its resolver.
    pub resolv_conf: ResolvConf,
    /// The hardware address that was asked for; none where it follows from the name.
    pub mac: Option<[u8; 6]>,
    /// When it was attached (seconds since 1970).
    pub since: u64,
}

impl Workload {
    /// Whether both are the same interface of the same container of one engine.
    pub fn is_same_attachment(&self, target: &Target, interface: &str) -> bool {
        matches!(target, Target::Engine { .. } | Target::OfUser { .. })
            && self.target == *target
            && self.inner_link == interface
    }

    /// Whether its link waits in this machine's namespace for the engine, which moves it into the container's by itself.
    pub fn is_staged(&self) -> bool {
        self.netns.is_none()
            && self.target.moves_links()
            && self.inner_link == stage_link(&self.host_link)
    }

    /// Whether the kernel is to have a link of it.
    pub fn has_link(&self) -> bool {
        self.netns.is_some() || self.is_staged() || self.target.tap_link().is_some()
    }

    /// Whether it lives in that namespace.
    pub fn is_in(&self, netns: &NetnsRef) -> bool {
        self.netns.as_ref().is_some_and(|own| own.is_same(netns))
    }
}

/// What came with a workload and goes with it, whichever way that ends.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Companions {
    /// What the workload's engine calls the network that it attached the workload by.
    pub network: Option<String>,
    /// Names of port maps that lead to the workload.
    pub maps: BTreeSet<Name>,
    /// Further names of the workload, each with the addresses that this node says of it.
    pub aliases: BTreeMap<String, Vec<IpAddr>>,
}

/// Addresses that belong to the name of a workload that is not attached now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Name of the workload that is gone.
    pub name: Name,
    /// The addresses it had, and gets again.
    pub addresses: Vec<IpAddr>,
}

/// A workload's namespace on disk: where there is none its path is empty, which is no namespace's. So what was written when
/// each had one is read as it is.
mod placed {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use super::NetnsRef;

    pub(super) fn serialize<S: Serializer>(
        netns: &Option<NetnsRef>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        let none = NetnsRef {
            path: "".into(),
            device: 0,
            inode: 0,
            cookie: None,
        };
        netns.as_ref().unwrap_or(&none).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<NetnsRef>, D::Error> {
        let netns = NetnsRef::deserialize(from)?;
        Ok(Some(netns).filter(|netns| !netns.path.as_os_str().is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn a_program_of_run_is_shown_by_its_name_and_number() {
        for (id, text) in [
            ("4711-90210-sleep", "sleep (pid 4711)"),
            ("4711-90210-my-tool", "my-tool (pid 4711)"),
            // As before the name stood in it.
            ("4711-90210", "pid 4711"),
            ("web-1-sleep", "web-1-sleep"),
        ] {
            let of = |engine: &str| {
                let engine = engine.parse().unwrap();
                Target::of_engine(engine, id.to_owned(), "byway0").unwrap()
            };
            assert_eq!(of(RUN).shown(), text);
            assert_eq!(of("cni").shown(), id, "another engine's ID is its own");
        }
    }

    /// A workload as version 1 wrote it, before one could be without a namespace.
    #[derive(Serialize)]
    struct Former {
        name: Name,
        target: Target,
        netns: NetnsRef,
        host_link: String,
        inner_link: String,
        addresses: Vec<IpAddr>,
        resolv_conf: ResolvConf,
        mac: Option<[u8; 6]>,
        since: u64,
    }

    #[test]
    fn a_workload_is_read_as_it_was_written_with_a_namespace_or_without() {
        let netns = NetnsRef {
            path: "/run/netns/db".into(),
            device: 4,
            inode: 5,
            cookie: Some(6),
        };
        let target = Target::Docker {
            name: "db".into(),
            id: "0123456789abcdef".repeat(4),
        };
        let former = Former {
            name: Name::from_host("db"),
            target: target.clone(),
            netns: netns.clone(),
            host_link: "bwv0".into(),
            inner_link: "byway0".into(),
            addresses: vec!["10.77.1.2".parse().unwrap()],
            resolv_conf: ResolvConf::None,
            mac: None,
            since: 7,
        };
        let bytes = crate::model::record::encode(&former);
        let read: Workload = codec::decode_front(&bytes).unwrap();
        assert_eq!(
            (&read.netns, read.target.container(), read.since),
            (&Some(netns), target.container(), 7)
        );
        assert_eq!(
            crate::model::record::encode(&read),
            bytes,
            "and written as it was"
        );
        let engine = Target::of_engine(Name::from_host("cni"), "0f".repeat(32), "eth0").unwrap();
        let apart = Workload {
            target: engine,
            netns: None,
            inner_link: "eth0".into(),
            ..read
        };
        assert_eq!(
            codec::decode_front::<Workload>(&crate::model::record::encode(&apart)).unwrap(),
            apart
        );
    }

    #[test]
    fn a_tap_has_a_name_that_fits_into_that_of_its_device() {
        let of = |name: &str| Target::of_tap(name.to_owned(), 1000);
        let longest = of("vm-01234567").unwrap();
        assert_eq!(longest.tap_link().as_deref(), Some("bwv-vm-01234567"));
        assert_eq!(
            (longest.kind(), longest.text(), longest.tap_owner()),
            ("tap", "vm-01234567", Some(1000))
        );
        for name in ["", "vm-012345678", "a/b", "a b", "vm%d", "a\n"] {
            let code = of(name).map(drop).map_err(|e| e.code);
            assert_eq!(code, Err(Code::Interface), "{name:?}");
        }
    }

    #[test]
    fn what_two_users_call_the_same_are_two_containers() {
        let of = |user: Option<u32>| {
            let target = Target::of_engine(Name::from_host("run"), "7-1".to_owned(), "eth0");
            let target = target.unwrap();
            user.map_or(target.clone(), |user| target.of(user))
        };
        let all = [of(None), of(Some(1000)), of(Some(1001))];
        for (i, one) in all.iter().enumerate() {
            assert_eq!((one.kind(), one.text()), ("run", "7-1"));
            assert_eq!(one.container(), Some("7-1"));
            assert_eq!(all.iter().position(|other| other == one), Some(i));
            let bytes = crate::model::record::encode(one);
            assert_eq!(codec::decode_front::<Target>(&bytes).unwrap(), *one);
        }
        assert_eq!(all.map(|t| t.user()), [None, Some(1000), Some(1001)]);
    }

    #[test]
    fn what_an_engine_calls_a_container_and_an_interface_is_looked_at() {
        let of = |container: &str, interface| {
            Target::of_engine(Name::from_host("cni"), container.to_owned(), interface)
                .map(drop)
                .map_err(|e| e.code)
        };
        assert_eq!(
            [of("web_1.a-b", "eth0"), of(&"f".repeat(255), "bw-lab.100")],
            [Ok(()), Ok(())]
        );
        for container in ["", "a/b", "a b", "a\n", &"f".repeat(256)] {
            assert_eq!(of(container, "eth0"), Err(Code::Container), "{container:?}");
        }
        let kept = [".", "..", "lo", "all", "default"];
        let wrong = ["", "eth 0", "eth/0", "eth*", "eth%d", "sixteen-bytes-00"];
        for interface in kept.into_iter().chain(wrong) {
            assert_eq!(of("web", interface), Err(Code::Interface), "{interface:?}");
        }
    }
}
