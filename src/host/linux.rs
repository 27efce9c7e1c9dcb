//! The kernel of this machine.

mod changes;
mod namespaces;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{Ipv6Addr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::crowd::Conntrack;
use super::firewall::{self, Firewalls};
use super::journal::Journal;
use super::netlink::{LinkInfo, Netlink};
use super::nft::Repair;
use super::rules::Moves;
use super::{
    Host, TunControl, events, failure, netconf, netns, nft, proxy, resolver, sysctl, within,
};
use crate::model::host::firewalls::{self, Integrate, Obstacle};
use crate::model::host::{
    Barred, Change, Failure, HostConfig, Moved, Namespace, NetnsRef, Observed, WorkloadConfig,
    alias_name, barred, host_mac, resolvers, sysctl_keys,
};
use crate::model::unwritten::Unwritten;
use namespaces::Inside;

/// How often it is checked that the namespaces of workloads are still at their paths.
const LIVENESS: Duration = Duration::from_secs(2);

/// The kernel of this machine, in the namespace it was made in.
pub struct LinuxHost {
    instance: String,
    tuns: TunControl,
    journal: Journal,
    netlink: Netlink,
    /// TUNs this process opened, with their index once it is known.
    opened: BTreeMap<String, u32>,
    inside: BTreeMap<NetnsRef, Inside>,
    /// Indexes of the inner ends of our pairs, by the name of the outer one.
    ends: BTreeMap<String, u32>,
    /// Numbers of the namespaces that those ends are in.
    numbers: BTreeMap<String, i32>,
    /// Where something changed inside since the last look.
    heard: within::Heard,
    /// Namespaces found gone: they never come back.
    gone: BTreeSet<NetnsRef>,
    /// Indexes of our links: events of others are not ours.
    indexes: Arc<Mutex<BTreeSet<u32>>>,
    wake: Arc<Notify>,
    watchers: Vec<JoinHandle<()>>,
    rules: Rules,
    moves: Moves,
    pub(super) conntrack: Conntrack,
    firewalls: Arc<tokio::sync::Mutex<Firewalls>>,
    /// The desired state that was applied last, for who looks after the firewalls of others.
    followed: watch::Sender<Arc<HostConfig>>,
    unwritten: watch::Receiver<Unwritten>,
    /// The links that the firewalls of others were last made to let through, all of them.
    led: BTreeSet<String>,
    /// The moment by which everything is to be gone, at a stop.
    end: Option<Instant>,
}

/// Ruleset and loopback proxies, shared with who reads their counters; and who else stops our packets.
#[derive(Clone)]
pub struct Rules(
    pub(super) Arc<tokio::sync::Mutex<(nft::Nft, proxy::Proxies)>>,
    watch::Receiver<Vec<Obstacle>>,
);

impl Rules {
    /// The chains that stop what we forward or answer, by our own probes.
    pub fn blocked(&self) -> Vec<Obstacle> {
        self.1.borrow().clone()
    }

    /// What the ruleset counted. Whoever changes it meanwhile is not held up: the table is listed beside them, and again
    /// only where they did.
    pub(super) async fn kernel_counts(&self) -> Result<nft::Counts, nft::Error> {
        let lister = self.0.lock().await.0.lister();
        let listed = lister.list().await?;
        let held = self.0.lock().await;
        if held.0.is_as_for(&lister) {
            return Ok(held.0.counted(listed));
        }
        held.0.counters().await
    }

    /// What the ruleset refused of each workload; nothing where it cannot be read.
    ///
    /// Only the sets that count it are listed: the table of many maps takes a while.
    pub async fn refused(&self) -> nft::Refused {
        let counted = async {
            let lister = self.0.lock().await.0.lister();
            let listed = lister.refused().await?;
            let held = self.0.lock().await;
            if held.0.is_as_for(&lister) {
                return Ok(held.0.refused(&listed));
            }
            let listed = held.0.lister().refused().await?;
            Ok::<_, nft::Error>(held.0.refused(&listed))
        };
        counted.await.unwrap_or_else(|error| {
            tracing::debug!(%error, "read what the ruleset refused of workloads");
            nft::Refused::default()
        })
    }

    /// The inodes of the sockets that the proxies listen with.
    pub(crate) async fn own_sockets(&self) -> HashSet<u64> {
        self.0.lock().await.1.inodes()
    }

    /// What passed through each port map so far, loopback clients included, and what the ruleset dropped, by reason.
    pub async fn counts(&self) -> nft::Counts {
        let mut counts = self.kernel_counts().await.unwrap_or_else(|error| {
            tracing::debug!(%error, "read the counters of the ruleset");
            nft::Counts::default()
        });
        let held = self.0.lock().await;
        for (key, more) in held.1.counters() {
            let count = counts.maps.entry(key).or_default();
            count.connections = count.connections.saturating_add(more.connections);
            count.rx_bytes = count.rx_bytes.saturating_add(more.rx_bytes);
            count.tx_bytes = count.tx_bytes.saturating_add(more.tx_bytes);
        }
        counts
    }
}

impl LinuxHost {
    /// Ruleset and proxies, for who reads their counters.
    pub fn rules(&self) -> Rules {
        self.rules.clone()
    }

    /// Tells what is applied. Of port maps it only matters there whether there are any, and that is seen with the next look.
    fn tell_followed(&self, desired: &HostConfig) {
        self.followed.send_if_modified(|last| {
            let same = desired.is_same_but_for_maps(last);
            if !same || desired.maps.is_empty() != last.maps.is_empty() {
                *last = Arc::new(desired.clone());
            }
            !same
        });
    }

    /// Rules in the firewalls of others follow our links. Where those are as they were, nobody waits for who looks after
    /// these rules just now.
    async fn follow(&mut self, links: BTreeSet<String>) -> Vec<Failure> {
        if self.led == links && self.firewalls.try_lock().is_err() {
            return Vec::new();
        }
        let failures = firewall::follow(Arc::clone(&self.firewalls), None, links.clone()).await;
        self.led = match failures.is_empty() {
            true => links,
            false => BTreeSet::new(),
        };
        failures
    }

    /// The records of what is owed that could not be written.
    pub fn unwritten(&self) -> watch::Receiver<Unwritten> {
        self.unwritten.clone()
    }
}

/// The tasks that fire `wake` when the kernel changes, the ruleset of others by `theirs` as well. Where one of them cannot
/// listen, the slow look sees what it would have told.
///
/// # Errors
/// When netlink does not tell of links.
fn watchers(
    nft: &nft::Nft,
    wake: &Arc<Notify>,
    indexes: &Arc<Mutex<BTreeSet<u32>>>,
    heard: &within::Heard,
    theirs: &Arc<Notify>,
) -> anyhow::Result<Vec<JoinHandle<()>>> {
    let mut watchers = vec![events::of_links(Arc::clone(wake), Arc::clone(indexes))?];
    match netconf::watch(Arc::clone(wake)) {
        Ok(watcher) => watchers.push(watcher),
        Err(error) => tracing::warn!(%error, "changes of forwarding by others are seen late"),
    }
    match within::watch(Arc::clone(wake), Arc::clone(heard)) {
        Ok(watcher) => watchers.push(watcher),
        Err(error) => tracing::warn!(%error, "changes inside workloads are seen late"),
    }
    match events::of_rules(nft, Arc::clone(wake), Arc::clone(theirs)) {
        Ok(watcher) => watchers.push(watcher),
        // Without the right to listen there is no right to change anything either: `preflight` names it.
        Err(error) => {
            tracing::warn!(
                error = format!("{error:#}"),
                "changes of the ruleset by others are seen late"
            )
        }
    }
    Ok(watchers)
}

impl Drop for LinuxHost {
    fn drop(&mut self) {
        self.watchers.iter().for_each(JoinHandle::abort);
    }
}

impl LinuxHost {
    /// Opens the kernel in the calling thread's namespace; needs a runtime. `state_dir` keeps what must be put back,
    /// across a kill.
    ///
    /// # Errors
    /// When netlink cannot be opened.
    pub fn new(
        instance: String,
        state_dir: PathBuf,
        tuns: TunControl,
        repair: Repair,
        integrate: Integrate,
    ) -> anyhow::Result<LinuxHost> {
        let wake = Arc::new(Notify::new());
        let indexes = Arc::default();
        let heard = within::Heard::default();
        let theirs = Arc::new(Notify::new());
        let nft = nft::Nft::new(&instance, repair);
        let mut watchers = watchers(&nft, &wake, &indexes, &heard, &theirs)?;
        let (own, table) = (nft.own(), nft.table().to_owned());
        let (obstacles, blocked) = watch::channel(Vec::new());
        let rules = Rules(
            Arc::new(tokio::sync::Mutex::new((nft, proxy::Proxies::new()))),
            blocked,
        );
        let (told, unwritten) = watch::channel(Unwritten::default());
        let firewalls = Firewalls::new(&instance, integrate, &state_dir, Arc::clone(&own))
            .telling(told.clone());
        let firewalls = Arc::new(tokio::sync::Mutex::new(firewalls));
        let (followed, desired) = watch::channel(Arc::default());
        let watch = firewall::Watch {
            firewalls: Arc::clone(&firewalls),
            rules: rules.clone(),
            desired,
            obstacles,
            theirs,
            inject: Arc::clone(&tuns.inject),
            own,
            table,
        };
        watchers.push(tokio::spawn(watch.run()));
        Ok(LinuxHost {
            rules,
            firewalls,
            followed,
            journal: Journal::open(&state_dir).telling(told),
            unwritten,
            led: BTreeSet::new(),
            end: None,
            netlink: Netlink::open()?,
            opened: BTreeMap::new(),
            inside: BTreeMap::new(),
            ends: BTreeMap::new(),
            numbers: BTreeMap::new(),
            heard,
            gone: BTreeSet::new(),
            instance,
            tuns,
            indexes,
            wake,
            watchers,
            moves: Moves::default(),
            conntrack: Conntrack::default(),
        })
    }

    /// The name a link of ours should have: by its alias, by the index of a TUN we opened, or by the hardware address
    /// we make pairs with (a kill may come between making and marking).
    fn owned(instance: &str, opened: &BTreeMap<String, u32>, info: &LinkInfo) -> Option<String> {
        if let Some(name) = alias_name(instance, &info.link.alias) {
            return Some(name.to_owned());
        }
        if let Some((name, _)) = opened.iter().find(|(_, index)| **index == info.index) {
            return Some(name.clone());
        }
        (info.link.mac == Some(host_mac(instance, &info.name))).then(|| info.name.clone())
    }

    async fn observe_host(
        &mut self,
        desired: &HostConfig,
        observed: &mut Observed,
    ) -> anyhow::Result<()> {
        let (instance, opened) = (self.instance.clone(), self.opened.clone());
        let ours = move |info: &LinkInfo| Self::owned(&instance, &opened, info);
        let look = self.netlink.host_state(&ours).await?;
        observed.table_shared = look.table_shared;
        observed.uplinks = look.uplinks;
        observed.connected = look.connected;
        observed.link_local = look.link_local;
        observed.namespaces.insert(Namespace::Host, look.state);
        (self.ends, self.numbers) = (look.ends, look.numbers);
        observed.moved = self.moved(desired);
        *self.indexes.lock() = look.indexes;
        let mut keys = sysctl_keys(desired, observed)
            .remove(&Namespace::Host)
            .unwrap_or_default();
        keys.extend(self.journal.sysctls().keys().cloned());
        observed.namespace_mut(&Namespace::Host).sysctls = sysctl::read_all(&keys);
        Ok(())
    }

    /// The ends that waited for their engine and are in another namespace now.
    fn moved(&self, desired: &HostConfig) -> Vec<Moved> {
        let waits = |w: &&WorkloadConfig| w.netns.is_none() && w.tap.is_none();
        let waiting = desired.workloads.iter().filter(waits);
        let moved = waiting.filter_map(|workload| {
            Some(Moved {
                subnet: workload.subnet,
                workload: workload.name.clone(),
                number: *self.numbers.get(&workload.host_link)?,
                index: *self.ends.get(&workload.host_link)?,
            })
        });
        moved.collect()
    }

    async fn observe_files(&self, desired: &HostConfig, observed: &mut Observed) {
        observed.kept_sysctls = self
            .journal
            .sysctls()
            .iter()
            .map(|(key, kept)| (key.clone(), kept.beside))
            .collect();
        observed.kept_resolvers = self.journal.resolvers().keys().cloned().collect();
        let wanted = resolvers(desired, observed);
        let paths: BTreeSet<PathBuf> = wanted
            .keys()
            .chain(&observed.kept_resolvers)
            .cloned()
            .collect();
        for path in paths {
            match resolver::read(&path).await {
                Ok(content) => {
                    let instead = wanted
                        .get(&path)
                        .filter(|resolver| resolver.create)
                        .map(|_| resolver::of_host());
                    let former = resolver::former(&self.journal, &path, content.as_deref())
                        .or(instead.flatten());
                    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                    observed
                        .formers
                        .extend(former.map(|former| (path.clone(), text(former))));
                    observed
                        .resolvers
                        .extend(content.map(|content| (path, text(content))));
                }
                Err(error) => {
                    tracing::debug!(error = format!("{error:#}"), "resolver file not read")
                }
            }
        }
    }

    /// Ruleset and proxies. Whether the ruleset stands, and what could not be done.
    async fn rules_and_ports(
        &mut self,
        desired: &HostConfig,
        observed: &Observed,
        barred: &Barred,
    ) -> (bool, Vec<Failure>) {
        let mut failures = Vec::new();
        let mut held = self.rules.0.lock().await;
        let synced = held.0.sync(desired, barred, &observed.crowd).await;
        let stands = synced.is_ok();
        match synced {
            Ok(refused) => failures.extend(refused),
            Err(error) => failures.push(failure("bring the ruleset up to date", error)),
        }
        failures.extend(held.1.sync(&desired.maps, &observed.link_local).await);
        (stands, failures)
    }
}

impl Host for LinuxHost {
    async fn observe(&mut self, desired: &HostConfig) -> anyhow::Result<Observed> {
        let mut observed = Observed {
            ipv6: std::path::Path::new("/proc/sys/net/ipv6/conf/all").exists(),
            no_ipv6_sockets: UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))
                .is_err_and(|error| error.raw_os_error() == Some(libc::EAFNOSUPPORT)),
            force_forwarding: sysctl::read("net/ipv6/conf/all/force_forwarding").is_some(),
            ..Observed::default()
        };
        self.observe_host(desired, &mut observed).await?;
        self.observe_inside(desired, &mut observed).await;
        self.observe_files(desired, &mut observed).await;
        observed.crowd = self.conntrack.crowd(desired).await;
        self.moves.limit(&mut observed, Instant::now());
        Ok(observed)
    }

    async fn apply(
        &mut self,
        desired: &HostConfig,
        observed: &Observed,
        changes: Vec<Change>,
    ) -> Vec<Failure> {
        let stops =
            desired.tuns.is_empty() && desired.workloads.is_empty() && desired.maps.is_empty();
        // Nobody's firewall may let through what our own table does not judge. The other way round is no harm, and at a
        // stop there is no time to do one after the other.
        let ending = self.end.map(|end| {
            self.tell_followed(desired);
            tokio::spawn(firewall::follow(
                Arc::clone(&self.firewalls),
                Some(end),
                firewalls::patterns(desired),
            ))
        });
        self.moves.note(observed, &changes, Instant::now());
        // What guards the links stands before they do, and falls after them.
        let (barred, barred_after) = barred(observed, &changes);
        let (guarded, mut failures) = if stops {
            (true, Vec::new())
        } else {
            self.rules_and_ports(desired, observed, &barred).await
        };
        // Without their guard no link is made, and none forwards: the next pass tries again.
        let changes = changes
            .into_iter()
            .filter(|change| guarded || change.removes());
        failures.extend(self.change_all(desired, changes).await);
        // Rules in the firewalls of others stand only while our own table judges what they let through.
        if let Some(ending) = ending {
            let died = |error| {
                vec![failure(
                    "take our links out of the firewalls of others",
                    error,
                )]
            };
            failures.extend(ending.await.unwrap_or_else(died));
        } else if stops || guarded {
            self.tell_followed(desired);
            failures.extend(self.follow(firewalls::patterns(desired)).await);
        }
        if stops || barred != barred_after {
            failures.extend(
                self.rules_and_ports(desired, observed, &barred_after)
                    .await
                    .1,
            );
        }
        failures
    }

    fn end_by(&mut self, until: Instant) {
        self.end = Some(until);
    }

    async fn changed(&mut self) {
        let gone = async {
            loop {
                tokio::time::sleep(LIVENESS).await;
                for netns in self.inside.keys().filter(|n| !self.gone.contains(*n)) {
                    if matches!(netns::exists(netns).await, Ok(false)) {
                        return;
                    }
                }
            }
        };
        tokio::select! {
            () = self.wake.notified() => {}
            () = gone => {}
            () = self.conntrack.changed() => {}
        }
    }
}
