//! Programs of this machine itself resolve the names of its subnets: its own resolver is told to ask us for them.
//!
//! Only services are told that ask several servers by name, and only of our zones and their reverse: every other question goes
//! where it went before. `/etc/resolv.conf` is read and never written. Whether it works is not believed but tried, after each
//! change: a random name below each zone is looked up as any program would, and the answer must be the one that only we give.
//!
//! Owns what the service holds for our links. With systemd-resolved that goes with the links, so there is nothing to undo
//! after a kill; with openresolv it is in a journal (`owed.rs`). Runs beside the reconciler: a service that does not answer must
//! not hold up the kernel's state.

mod asked;
mod bus;
mod openresolv;
mod owed;
mod resolved;
mod wanted;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::{Stream, StreamExt as _};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::events;
use super::netlink::Netlink;
use super::{Failure, failure};
use crate::model::host::alias_name;
use crate::model::unwritten::Unwritten;
use crate::model::view::View;
use asked::Asked;
use bus::{Bus, Refusal};
use owed::Owed;
use wanted::{LinkNames, wanted};

/// Time between two looks at what the service holds, which others may change.
const TICK: Duration = Duration::from_secs(10);
/// Between an event and what is done about it: links, addresses and Views change in swarms.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// Least time from one pass to the next: on a machine where links come and go all the time it takes little of the processor.
const LEAST: Duration = Duration::from_millis(300);
/// Until the next try while the service has not heard of a link yet, or does not use it yet.
const SOON: Duration = Duration::from_millis(250);
/// Such tries in a row, before it is called a failure and tried with the next tick.
const TRIES: u32 = 12;
/// Who says what a process that is not root may ask for: when it comes, a refusal may be over.
const POLKIT: &str = "org.freedesktop.PolicyKit1";
/// The name of NetworkManager's dnsmasq.
const DNSMASQ: &str = "org.freedesktop.NetworkManager.dnsmasq";
/// How long one lookup may take.
const LOOKUP: Duration = Duration::from_secs(4);
/// How long a stop waits for openresolv.
const LAST: Duration = Duration::from_secs(2);
/// Between two lookups that failed, once they have often enough; and between two looks for a program.
const SELDOM: Duration = Duration::from_secs(60);

/// What asks for names on behalf of this machine's programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// systemd-resolved, told over the bus.
    Resolved,
    /// openresolv, which tells a resolver on this machine.
    Openresolv,
    /// A resolver that somebody else has told to ask us.
    ByHand,
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Service::Resolved => "systemd-resolved",
            Service::Openresolv => "openresolv",
            Service::ByHand => "the resolver that was set up by hand",
        })
    }
}

/// Whether this machine's programs resolve our names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Outcome {
    /// There are no names here, or nobody is to be told of them, or it is not known yet.
    #[default]
    Unknown,
    /// The test was answered by us.
    Works,
    /// The service took what it was told, and yet the test was not answered by us.
    NotAsked(String),
    /// The service refused it.
    Refused {
        /// What it said.
        why: String,
        /// Whether this process has no right to ask for it.
        denied: bool,
    },
    /// No service runs that can be told.
    NoService,
}

/// Whether this machine's programs resolve our names, and by whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostNames {
    /// Who asks us; none where nobody does.
    pub service: Option<Service>,
    /// Whether it works.
    pub outcome: Outcome,
    /// The zones, `lab.internal`, each with an address of ours that answers it.
    pub zones: Vec<(String, IpAddr)>,
    /// The name servers that the resolver file names.
    pub servers: Vec<IpAddr>,
    /// Whether programs ask a dnsmasq of NetworkManager's, which reads files of the administrator's alone.
    pub is_network_managers: bool,
}

/// Has our name server answer these addresses for a name, to this machine alone; none: no name is tried.
pub type TryName = Arc<dyn Fn(Option<(&str, Vec<IpAddr>)>) + Send + Sync>;

/// A link that was set, as which process of the service took it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    owner: String,
    names: LinkNames,
}

/// Tells when one of the services comes or goes.
type Owners = Box<dyn Stream<Item = ()> + Send + Unpin>;

/// Resolves with the next one; never where nobody tells, and where the bus ended, nobody does from then on.
async fn next(owners: &mut Option<Owners>) {
    match owners {
        Some(all) => {
            if all.next().await.is_none() {
                *owners = None;
            }
        }
        None => std::future::pending().await,
    }
}

/// Keeps the host's resolver in line with the View.
pub struct SplitDns {
    instance: String,
    try_name: TryName,
    told: watch::Sender<HostNames>,
    bus: Option<Bus>,
    /// What resolved holds for our links, by their number.
    set: BTreeMap<i32, Told>,
    /// When it was last looked at whether it still does.
    checked: Option<Instant>,
    /// What openresolv was told by this run, by link.
    given: BTreeMap<String, LinkNames>,
    /// The links that it has a file of, also from earlier runs.
    owed: Owed,
    /// Whether openresolv is here, and when that was looked at.
    openresolv: Option<(bool, Instant)>,
    /// Passes in a row that something was not ready.
    tries: u32,
    /// Whom programs asked when that was looked at last.
    asked: Asked,
    /// What was tested last, with how it went and when.
    tested: Option<(Vec<LinkNames>, Result<(), String>, Instant)>,
    lookup: Option<JoinHandle<Vec<IpAddr>>>,
}

impl SplitDns {
    /// One that tells nobody anything until it [runs](Self::run).
    pub fn new(instance: &str, state_dir: &Path, try_name: TryName) -> SplitDns {
        SplitDns {
            instance: instance.to_owned(),
            try_name,
            told: watch::Sender::default(),
            bus: None,
            set: BTreeMap::new(),
            checked: None,
            given: BTreeMap::new(),
            owed: Owed::open(state_dir),
            openresolv: None,
            tries: 0,
            asked: Asked::default(),
            tested: None,
            lookup: None,
        }
    }

    /// Whether it works, as that changes.
    pub fn told(&self) -> watch::Receiver<HostNames> {
        self.told.subscribe()
    }

    /// Whether what is owed can be written down, as that changes.
    pub fn unwritten(&self) -> watch::Receiver<Unwritten> {
        self.owed.unwritten()
    }

    /// Follows the View until `stop`, and the resolver file, of which `file` says that it may be another one; then takes back what would outlive our links (two seconds at most).
    pub async fn run(
        mut self,
        view: Arc<ArcSwap<View>>,
        mut ticks: watch::Receiver<u64>,
        mut file: watch::Receiver<u64>,
        stop: CancellationToken,
    ) {
        let wake = Arc::new(Notify::new());
        let watcher = events::of_links(Arc::clone(&wake), Arc::default());
        if let Err(error) = &watcher {
            tracing::warn!(%error, "the host's resolver hears late of new links");
        }
        let mut owners = None;
        loop {
            if self.connect().await {
                owners = self.owners().await;
            }
            let began = Instant::now();
            let names = wanted(&view.load());
            let wait = tokio::select! {
                () = stop.cancelled() => break,
                wait = self.follow(names) => wait,
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = next(&mut owners) => {}
                () = wake.notified() => {}
                Ok(()) = ticks.changed() => {}
                Ok(()) = file.changed() => {}
                () = tokio::time::sleep(wait) => {}
            }
            let rest = LEAST.saturating_sub(began.elapsed()).max(DEBOUNCE);
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(rest) => {}
            }
        }
        if let Ok(watcher) = watcher {
            watcher.abort();
        }
        // What is not taken back now, the next start or `cleanup` does.
        let _ = tokio::time::timeout(LAST, self.take_back(&[])).await;
    }

    /// Connects to the bus where there is no connection; whether there is a new one.
    async fn connect(&mut self) -> bool {
        if self.bus.as_ref().is_some_and(|bus| !bus.is_closed()) {
            return false;
        }
        self.bus = match Bus::open().await {
            Ok(bus) => Some(bus),
            Err(error) => {
                tracing::debug!(%error, "connect to the system bus");
                None
            }
        };
        self.bus.is_some()
    }

    async fn owners(&self) -> Option<Owners> {
        let changed = self
            .bus
            .as_ref()?
            .owners_changed(&[resolved::SERVICE, POLKIT]);
        match changed.await {
            Ok(stream) => Some(Box::new(stream)),
            Err(error) => {
                tracing::warn!(%error, "a restart of the host's resolver is seen late");
                None
            }
        }
    }

    /// One pass. Returns the time to the next one, if nothing happens before.
    async fn follow(&mut self, names: Vec<LinkNames>) -> Duration {
        let links = own_links(&self.instance).await;
        let here = |names: LinkNames| Some((*links.get(&names.link)?, names));
        let here: Vec<(i32, LinkNames)> = names.into_iter().filter_map(here).collect();
        if here.is_empty() && self.set.is_empty() && self.owed.links().is_empty() {
            self.tell(HostNames::default());
            return TICK;
        }
        let asked = Asked::now();
        if self.asked != asked {
            // What was tested says nothing of whom programs ask now.
            (self.tested, self.tries) = (None, 0);
            self.asked = asked.clone();
        }
        let (service, outcome) = match self.resolved().await {
            Some((bus, owner)) => {
                let _ = self.take_back(&[]).await;
                let outcome = self.by_resolved(&bus, &owner, &here, &asked).await;
                (Some(Service::Resolved), outcome)
            }
            None if self.has_openresolv().await => {
                let outcome = self.by_openresolv(&here, &asked).await;
                (Some(Service::Openresolv), outcome)
            }
            None => self.by_hand(&here, &asked).await,
        };
        // Who has no right to it does not get one by asking again soon.
        let is_ready = !matches!(
            outcome,
            Outcome::NotAsked(_) | Outcome::Refused { denied: false, .. }
        );
        self.tries = if is_ready {
            0
        } else {
            self.tries.saturating_add(1)
        };
        if !is_ready && self.tries < TRIES {
            return SOON;
        }
        let is_network_managers =
            outcome == Outcome::NoService && self.is_network_managers(&asked).await;
        let zones = here
            .iter()
            .filter_map(|(_, names)| Some((names.zone().to_owned(), *names.servers.first()?)));
        self.tell(HostNames {
            service: service.filter(|_| !here.is_empty()),
            outcome: if here.is_empty() {
                Outcome::Unknown
            } else {
                outcome
            },
            zones: zones.collect(),
            servers: asked.servers,
            is_network_managers,
        });
        TICK
    }

    fn tell(&self, next: HostNames) {
        self.told.send_if_modified(|last| {
            if *last == next {
                return false;
            }
            match (&next.service, &next.outcome) {
                (Some(service), Outcome::Works) => {
                    tracing::info!(%service, "programs of this machine resolve the names of its subnets");
                }
                (_, Outcome::Refused { why, .. } | Outcome::NotAsked(why)) => {
                    tracing::warn!(why, "programs of this machine do not resolve the names of its subnets");
                }
                _ => {}
            }
            *last = next;
            true
        });
    }

    /// The resolved of this network namespace, where one runs.
    async fn resolved(&mut self) -> Option<(Bus, String)> {
        let bus = self.bus.clone()?;
        let owner = match bus.owner(resolved::SERVICE).await {
            Ok(owner) => owner?,
            Err(error) => {
                tracing::debug!(%error, "ask who resolves names");
                return None;
            }
        };
        let is_known = self.set.values().any(|told| told.owner == owner);
        (is_known || resolved::is_here(&bus, &owner).await).then_some((bus, owner))
    }

    /// Brings resolved in line, and tests what was changed.
    async fn by_resolved(
        &mut self,
        bus: &Bus,
        owner: &str,
        here: &[(i32, LinkNames)],
        asked: &Asked,
    ) -> Outcome {
        let stay = |index: &i32| here.iter().any(|(i, _)| i == index);
        for index in self.set.keys().copied().collect::<Vec<_>>() {
            if !stay(&index) {
                // Most often the link is gone, and all this with it.
                if let Err(refusal) = resolved::revert(bus, index).await {
                    tracing::debug!(%refusal, index, "take our names from a link");
                }
                self.set.remove(&index);
            }
        }
        let is_due = self.checked.is_none_or(|when| when.elapsed() >= TICK);
        if is_due {
            self.checked = Some(Instant::now());
        }
        for (index, names) in here {
            let told = Told {
                owner: owner.to_owned(),
                names: names.clone(),
            };
            if self.set.get(index) == Some(&told)
                && (!is_due || resolved::holds(bus, *index, names).await.unwrap_or(false))
            {
                continue;
            }
            self.set.remove(index);
            self.tested = None;
            if let Err(refusal) = resolved::set(bus, *index, names).await {
                return refusal.into();
            }
            self.set.insert(*index, told);
        }
        self.test(here, asked).await
    }

    /// resolved is gone, and with it what it was told. What was answered then says nothing of who is asked now.
    fn forget_resolved(&mut self) {
        if !self.set.is_empty() {
            self.set.clear();
            self.tested = None;
        }
    }

    /// Nobody can be told. Who runs a resolver of his own may have told it to ask us.
    async fn by_hand(
        &mut self,
        here: &[(i32, LinkNames)],
        asked: &Asked,
    ) -> (Option<Service>, Outcome) {
        self.forget_resolved();
        match self.test(here, asked).await {
            Outcome::Works => (Some(Service::ByHand), Outcome::Works),
            _ => (None, Outcome::NoService),
        }
    }

    /// Whether programs ask the dnsmasq that NetworkManager runs. What it is told over the bus NetworkManager takes back at
    /// its next change, so it is told nothing.
    async fn is_network_managers(&self, asked: &Asked) -> bool {
        let (Some(bus), Some(server)) = (&self.bus, asked.servers.first()) else {
            return false;
        };
        server.is_loopback() && matches!(bus.owner(DNSMASQ).await, Ok(Some(_)))
    }

    /// Looks a name up below each zone, where that was not done since something changed.
    async fn test(&mut self, here: &[(i32, LinkNames)], asked: &Asked) -> Outcome {
        let names: Vec<LinkNames> = here.iter().map(|(_, names)| names.clone()).collect();
        let own = |ip: &IpAddr| names.iter().any(|n| n.servers.contains(ip));
        if !asked.is_here(own) {
            self.tested = None;
            let server = asked.servers.first().map(ToString::to_string);
            return Outcome::NotAsked(format!(
                "this machine's programs ask {}",
                server.unwrap_or_default()
            ));
        }
        let is_first = (1..TRIES).contains(&self.tries);
        let known = self.tested.take().filter(|(tested, how, when)| {
            let still = how.is_ok() || (!is_first && when.elapsed() < SELDOM);
            *tested == names && still
        });
        let (tested, how, when) = match known {
            Some(known) => known,
            None => {
                let mut how = Ok(());
                for subnet in &names {
                    how = how.and(self.look_up(subnet).await);
                }
                (names, how, Instant::now())
            }
        };
        let outcome = match &how {
            Ok(()) => Outcome::Works,
            Err(why) => Outcome::NotAsked(why.clone()),
        };
        self.tested = Some((tested, how, when));
        outcome
    }

    /// Looks up a random name as any program does.
    ///
    /// # Errors
    /// When the answer is not the one that only we give.
    async fn look_up(&mut self, names: &LinkNames) -> Result<(), String> {
        // One at a time: the C library cannot be interrupted.
        if self.lookup.as_ref().is_some_and(|task| !task.is_finished()) {
            return Err("this machine's resolver does not answer".to_owned());
        }
        let random = getrandom::u64().map_err(|error| error.to_string())?;
        let name = format!("byway-test-{random:016x}.{}", names.zone());
        (self.try_name)(Some((&name, names.servers.clone())));
        let asked = format!("{name}.");
        let mut task = tokio::task::spawn_blocking(move || {
            let found = (asked.as_str(), 0).to_socket_addrs();
            let found = found.into_iter().flatten().map(|address| address.ip());
            found.collect::<Vec<IpAddr>>()
        });
        let found = tokio::time::timeout(LOOKUP, &mut task).await;
        (self.try_name)(None);
        match found {
            Ok(Ok(found)) if found.iter().any(|ip| names.servers.contains(ip)) => Ok(()),
            Ok(_) => Err(format!("{} is not asked here", names.zone())),
            Err(_) => {
                self.lookup = Some(task);
                Err("this machine's resolver does not answer".to_owned())
            }
        }
    }
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Outcome {
        Outcome::Refused {
            denied: matches!(refusal, Refusal::Denied(_)),
            why: refusal.to_string(),
        }
    }
}

/// Takes back what a daemon that is gone has left with openresolv: what was taken, in words, and what was not.
pub(super) async fn cleanup(state_dir: &Path) -> (Vec<String>, Vec<Failure>) {
    let (mut done, mut left) = (Vec::new(), Vec::new());
    let mut owed = Owed::open(state_dir);
    for link in owed.links().clone() {
        let removed = openresolv::remove(&link).await.map_err(anyhow::Error::msg);
        match removed.and_then(|()| owed.change(&link, false)) {
            Ok(()) => done.push(format!("took {link} from resolvconf")),
            Err(error) => left.push(failure(
                format!("take {link} from resolvconf"),
                format!("{error:#}"),
            )),
        }
    }
    (done, left)
}

/// Our links of subnets, by name, with their numbers. A link of that name that is not ours is left alone.
async fn own_links(instance: &str) -> BTreeMap<String, i32> {
    let links = async { Netlink::open()?.links().await };
    let links = links.await.unwrap_or_else(|error| {
        tracing::debug!(%error, "look at our links");
        BTreeMap::new()
    });
    let ours = links
        .into_iter()
        .filter(|(_, info)| alias_name(instance, &info.link.alias) == Some(info.name.as_str()));
    ours.filter_map(|(index, info)| Some((info.name, i32::try_from(index).ok()?)))
        .collect()
}
