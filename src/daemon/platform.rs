//! The platform below: the kernel, sockets alone where a daemon only relays, or memory in tests of whole daemons without root.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;

use crate::api::types::{Error, ErrorKind};
use crate::config::Config;
use crate::datapath::Datapath;
use crate::host::nft::Repair;
use crate::host::{Failure, Host, LinuxHost, Rules, TunControl, Untouched, memory::MemoryHost};
use crate::model::error::Code;
use crate::model::host::firewalls::Integrate;
use crate::model::host::{Change, HostConfig, Observed, TunConfig};
use crate::model::state::State;
use crate::model::unwritten::Unwritten;
use crate::p2p::TransportKind;
use crate::packet::TunOffload;
use crate::report::PlatformKind;
use crate::service::join::Surroundings;
use crate::tun::{self, Tun};

/// Opens memory TUNs for a test.
pub type OpenMemoryTun = Arc<dyn Fn(&TunConfig) -> Arc<dyn Tun> + Send + Sync>;

/// The kernel's host, memory's, or none.
pub(crate) enum AnyHost {
    Linux(Box<LinuxHost>),
    Memory(Box<MemoryHost>),
    Untouched(Untouched),
}

impl AnyHost {
    /// Where the kernel's counters are read.
    pub(crate) fn rules(&self) -> Option<Rules> {
        match self {
            AnyHost::Linux(host) => Some(host.rules()),
            AnyHost::Memory(_) | AnyHost::Untouched(_) => None,
        }
    }
}

impl AnyHost {
    /// Which of its records cannot be written.
    pub(crate) fn unwritten(&self) -> Option<watch::Receiver<Unwritten>> {
        match self {
            AnyHost::Linux(host) => Some(host.unwritten()),
            AnyHost::Memory(_) | AnyHost::Untouched(_) => None,
        }
    }
}

impl Host for AnyHost {
    fn end_by(&mut self, until: std::time::Instant) {
        match self {
            AnyHost::Linux(host) => host.end_by(until),
            AnyHost::Memory(host) => host.end_by(until),
            AnyHost::Untouched(host) => host.end_by(until),
        }
    }

    async fn observe(&mut self, desired: &HostConfig) -> anyhow::Result<Observed> {
        match self {
            AnyHost::Linux(host) => host.observe(desired).await,
            AnyHost::Memory(host) => host.observe(desired).await,
            AnyHost::Untouched(host) => host.observe(desired).await,
        }
    }

    async fn apply(
        &mut self,
        desired: &HostConfig,
        observed: &Observed,
        changes: Vec<Change>,
    ) -> Vec<Failure> {
        match self {
            AnyHost::Linux(host) => host.apply(desired, observed, changes).await,
            AnyHost::Memory(host) => host.apply(desired, observed, changes).await,
            AnyHost::Untouched(host) => host.apply(desired, observed, changes).await,
        }
    }

    async fn changed(&mut self) {
        match self {
            AnyHost::Linux(host) => host.changed().await,
            AnyHost::Memory(host) => host.changed().await,
            AnyHost::Untouched(host) => host.changed().await,
        }
    }
}

/// What the daemon runs on.
#[derive(Clone)]
pub enum Platform {
    /// This network namespace's kernel.
    Kernel,
    /// Nothing but memory: TUNs come from the test, the host only remembers.
    Memory(OpenMemoryTun),
    /// Sockets and nothing else: for a daemon that only relays, which needs no privilege.
    Relay,
}

impl Platform {
    /// The one that a configuration asks for.
    pub(crate) fn of(config: &Config) -> Platform {
        if config.relay_only {
            Platform::Relay
        } else {
            Platform::Kernel
        }
    }

    /// Whether a saved state can be served here.
    ///
    /// # Errors
    /// `E-RELAY-ONLY` where it holds subnets or joins and this daemon only relays: its packets would go nowhere.
    pub(crate) fn takes(&self, state: &State, dir: &Path) -> Result<(), Error> {
        let subnets = state
            .subnets
            .values()
            .map(|subnet| subnet.name().to_string());
        let joins = state.joins.keys().map(ToString::to_string);
        let held: Vec<String> = subnets.chain(joins).collect();
        if held.is_empty() || !matches!(self, Platform::Relay) {
            return Ok(());
        }
        let message = format!(
            "a daemon that only relays is in no subnet, and {} holds memberships: {}",
            dir.display(),
            held.join(", ")
        );
        let hint = "byway daemon --relay-only --state-dir DIR --socket PATH      (a directory of its own; or start it without \
                    --relay-only, and byway leave SUBNET first)";
        Err(Error::new(ErrorKind::Conflict, Code::RelayOnly, message).hint(hint))
    }

    pub(crate) fn is_kernel(&self) -> bool {
        matches!(self, Platform::Kernel)
    }

    pub(crate) fn kind(&self) -> PlatformKind {
        match self {
            Platform::Kernel => PlatformKind::Kernel,
            Platform::Memory(_) => PlatformKind::Memory,
            Platform::Relay => PlatformKind::Relay,
        }
    }

    pub(crate) fn transport(&self) -> TransportKind {
        match self {
            Platform::Kernel | Platform::Relay => TransportKind::Network,
            Platform::Memory(_) => TransportKind::Memory,
        }
    }

    /// The host to reconcile, opening and closing TUNs through the packet path.
    ///
    /// # Errors
    /// When the kernel's sockets cannot be opened.
    pub(crate) fn host(
        &self,
        instance: &str,
        state_dir: &Path,
        datapath: Datapath,
        repair: Repair,
        integrate: Integrate,
    ) -> anyhow::Result<AnyHost> {
        let platform = self.clone();
        let (opening, closing) = (datapath.clone(), datapath);
        type Open = std::collections::HashMap<String, (crate::model::id::SubnetId, Arc<dyn Tun>)>;
        let names: Arc<parking_lot::Mutex<Open>> = Arc::default();
        let (known, open) = (names.clone(), names.clone());
        let tuns = TunControl {
            open: Arc::new(move |config: &TunConfig| {
                let tun: Arc<dyn Tun> = match &platform {
                    Platform::Kernel => Arc::new(tun::linux::open(&config.name, config.mtu)?),
                    Platform::Memory(open) => open(config),
                    Platform::Relay => anyhow::bail!("a daemon that only relays has no TUN"),
                };
                known
                    .lock()
                    .insert(config.name.clone(), (config.subnet, tun.clone()));
                opening.attach_tun(config.subnet, tun)?;
                Ok(())
            }),
            close: Arc::new(move |name: &str| {
                let subnet = names.lock().remove(name);
                if let Some((subnet, _)) = subnet {
                    closing.detach_tun(subnet);
                }
            }),
            inject: Arc::new(move |name: &str, packet: &[u8]| {
                let tun = open
                    .lock()
                    .get(name)
                    .map(|(_, tun)| tun.clone())
                    .ok_or_else(|| anyhow::anyhow!("no TUN {name} is open"))?;
                Ok(tun.send(TunOffload::default(), packet)?)
            }),
        };
        Ok(match self {
            Platform::Kernel => AnyHost::Linux(Box::new(LinuxHost::new(
                instance.to_owned(),
                state_dir.to_path_buf(),
                tuns,
                repair,
                integrate,
            )?)),
            Platform::Memory(_) => AnyHost::Memory(Box::new(MemoryHost::new(tuns).0)),
            Platform::Relay => AnyHost::Untouched(Untouched),
        })
    }

    /// What a subnet must leave to this machine.
    pub(crate) fn surroundings(&self, instance: &str) -> Surroundings {
        match self {
            Platform::Kernel => Surroundings::Kernel {
                instance: instance.into(),
            },
            Platform::Memory(_) | Platform::Relay => Surroundings::Nothing,
        }
    }
}
