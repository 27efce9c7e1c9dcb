//! The kernel of this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv6Addr, UdpSocket};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::crowd::Conntrack;
use super::firewall::{self, Firewalls};
use super::inner::Expected;
use super::journal::Journal;
use super::netlink::{LinkInfo, Netlink};
use super::netns::{self, NetnsError};
use super::nft::Repair;
use super::rules::Moves;
use super::{Host, TunControl, events, failure, netconf, nft, proxy, resolver, sysctl, within};
use crate::model::host::neighbour::{Integrate, Obstacle};
use crate::model::host::{
    Barred, Change, Failure, HostConfig, Namespace, NamespaceState, NetnsRef, Observed,
    WorkloadConfig, alias_name, barred, host_mac, inner_mac, inner_table, resolvers, sysctl_keys,
};
use crate::model::unwritten::Unwritten;

/// How long what was seen inside a workload's namespace is believed where no news come from there.
const BELIEVED: Duration = Duration::from_secs(5);
/// How often it is checked that the namespaces of workloads are still at their paths.
const LIVENESS: Duration = Duration::from_secs(2);
/// Namespaces that are looked into at the same time.
const AT_ONCE: usize = 8;
/// How long a closed TUN may take to vanish before it is deleted.
const TUN_CLOSING: Duration = Duration::from_millis(300);

/// What is known of one workload's namespace.
#[derive(Debug, Default)]
struct Inside {
    /// Tells it from a later one with the same inode number.
    cookie: Option<u64>,
    /// What was seen last, and when.
    seen: Option<(Instant, NamespaceState)>,
}

/// What there is to do about one namespace.
enum Prepared {
    /// Nothing: it was seen a moment ago.
    Known(NamespaceState),
    /// Look, if it is the one with this cookie.
    Look(Option<u64>, netns::Look),
}

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
    /// Numbers of the namespaces those are in.
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
    /// When everything is to be gone, at a stop.
    end: Option<Instant>,
}

/// Ruleset and loopback proxies, shared with who reads their counters; and who else stops our packets.
#[derive(Clone)]
pub struct Rules(
    pub(super) Arc<tokio::sync::Mutex<(nft::Nft, proxy::Proxies)>>,
    watch::Receiver<Vec<Obstacle>>,
);

impl Rules {
    /// Who stops what we forward or answer, by our own probes.
    pub fn blocked(&self) -> Vec<Obstacle> {
        self.1.borrow().clone()
    }

    /// What passed through each port map so far, loopback clients included, and what the ruleset dropped, by reason.
    pub async fn counts(&self) -> nft::Counts {
        let held = self.0.lock().await;
        let mut counts = held.0.counters().await.unwrap_or_else(|error| {
            tracing::debug!(%error, "read the counters of the ruleset");
            nft::Counts::default()
        });
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

    fn tell_followed(&self, desired: &HostConfig) {
        self.followed.send_if_modified(|last| {
            let news = **last != *desired;
            if news {
                *last = Arc::new(desired.clone());
            }
            news
        });
    }

    /// Which records of what is owed could not be written.
    pub fn unwritten(&self) -> watch::Receiver<Unwritten> {
        self.unwritten.clone()
    }
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
        let nft = nft::Nft::new(&instance, repair);
        let mut watchers = vec![events::of_links(Arc::clone(&wake), Arc::clone(&indexes))?];
        match netconf::watch(Arc::clone(&wake)) {
            Ok(watcher) => watchers.push(watcher),
            Err(error) => tracing::warn!(%error, "changes of forwarding by others are seen late"),
        }
        let heard = within::Heard::default();
        match within::watch(Arc::clone(&wake), Arc::clone(&heard)) {
            Ok(watcher) => watchers.push(watcher),
            Err(error) => tracing::warn!(%error, "changes inside workloads are seen late"),
        }
        let theirs = Arc::new(Notify::new());
        match events::of_rules(&nft, Arc::clone(&wake), Arc::clone(&theirs)) {
            Ok(watcher) => watchers.push(watcher),
            // Without the right to listen there is no right to change anything either: `preflight` names it.
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "changes of the ruleset by others are seen late"
                )
            }
        }
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
        let look = self.netlink.scene(&ours).await?;
        observed.table_shared = look.table_shared;
        observed.uplinks = look.uplinks;
        observed.connected = look.connected;
        observed.link_local = look.link_local;
        observed.places.insert(Namespace::Host, look.scene);
        (self.ends, self.numbers) = (look.ends, look.numbers);
        *self.indexes.lock() = look.indexes;
        let mut keys = sysctl_keys(desired, observed)
            .remove(&Namespace::Host)
            .unwrap_or_default();
        keys.extend(self.journal.sysctls().keys().cloned());
        observed.scene(&Namespace::Host).sysctls = sysctl::read_all(&keys);
        Ok(())
    }

    /// Namespaces of the desired workloads, and those where rules of ours still stand.
    async fn observe_inside(&mut self, desired: &HostConfig, observed: &mut Observed) {
        let mut places: BTreeSet<NetnsRef> = desired.namespaces().into_iter().cloned().collect();
        places.extend(self.journal.rules().iter().map(|(netns, _)| netns.clone()));
        self.inside.retain(|netns, _| places.contains(netns));
        self.gone.retain(|netns| places.contains(netns));
        let keys = sysctl_keys(desired, observed);
        let news = within::take(&self.heard);
        let mut looks = Vec::new();
        for netns in places {
            let sysctls = keys
                .get(&Namespace::Netns(netns.clone()))
                .cloned()
                .unwrap_or_default();
            self.believe_no_more(desired, &netns, &news);
            looks.push((
                netns.clone(),
                self.prepare(desired, observed, &netns, sysctls),
            ));
        }
        // Side by side: one namespace that takes long holds no other up.
        let outcomes: Vec<_> = futures::stream::iter(looks)
            .map(|(netns, prepared)| async move {
                let seen = match prepared {
                    Ok(Prepared::Known(scene)) => Ok((scene, None)),
                    Ok(Prepared::Look(cookie, look)) => netns::observe(&netns, cookie, look)
                        .await
                        .map(|(scene, cookie)| (scene, Some(cookie))),
                    Err(error) => Err(error),
                };
                (netns, seen)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        for (netns, seen) in outcomes {
            match seen {
                Ok((scene, fresh)) => {
                    if let Some(cookie) = fresh {
                        let known = self.inside.entry(netns.clone()).or_default();
                        known.cookie = known.cookie.or(cookie);
                        known.seen = Some((Instant::now(), scene.clone()));
                    }
                    observed.places.insert(Namespace::Netns(netns), scene);
                }
                Err(NetnsError::Gone(path)) => {
                    if self.gone.insert(netns.clone()) {
                        tracing::info!(netns = %path.display(), "network namespace is gone");
                    }
                    let dead = desired.workloads.iter().filter(|w| w.netns == netns);
                    observed
                        .dead
                        .extend(dead.map(|w| (w.subnet, w.name.clone())));
                }
                Err(error) => {
                    tracing::warn!(netns = %netns.path.display(), %error, "network namespace cannot be read");
                    observed.unreadable.insert(netns);
                }
            }
        }
        // Rules in a namespace that is gone are gone; those that were seen to be gone elsewhere as well.
        let stand = |netns: &NetnsRef, rule| {
            let unreadable = observed.unreadable.contains(netns);
            let scene = observed.places.get(&Namespace::Netns(netns.clone()));
            unreadable || scene.is_some_and(|scene| scene.rules.contains(rule))
        };
        let rules = self
            .journal
            .rules()
            .iter()
            .filter(|(netns, rule)| stand(netns, rule))
            .cloned()
            .collect();
        if let Err(error) = self.journal.set_rules(rules) {
            tracing::warn!(
                error = format!("{error:#}"),
                "rules of workloads not recorded"
            );
        }
    }

    /// What was seen in a namespace counts no more when something changed there since then.
    fn believe_no_more(&mut self, desired: &HostConfig, netns: &NetnsRef, news: &within::News) {
        let mut here = desired.workloads.iter().filter(|w| w.netns == *netns);
        if here.any(|w| news.concerns(self.numbers.get(&w.host_link).copied()))
            && let Some(known) = self.inside.get_mut(netns)
        {
            known.seen = None;
        }
    }

    /// What has to be looked at in a namespace, or what was seen there a moment ago.
    fn prepare(
        &mut self,
        desired: &HostConfig,
        observed: &Observed,
        netns: &NetnsRef,
        sysctls: BTreeSet<String>,
    ) -> Result<Prepared, NetnsError> {
        if self.gone.contains(netns) || !netns::exists(netns)? {
            return Err(NetnsError::Gone(netns.path.clone()));
        }
        let here: Vec<&WorkloadConfig> = desired
            .workloads
            .iter()
            .filter(|w| w.netns == *netns)
            .collect();
        let host = observed.places.get(&Namespace::Host);
        let pairs = here
            .iter()
            .all(|w| host.is_some_and(|scene| scene.links.contains_key(&w.host_link)));
        let known = self.inside.entry(netns.clone()).or_default();
        if let Some((when, scene)) = known
            .seen
            .as_ref()
            .filter(|(when, _)| pairs && when.elapsed() < BELIEVED)
        {
            tracing::trace!(netns = %netns.path.display(), age = ?when.elapsed(), "believed");
            return Ok(Prepared::Known(scene.clone()));
        }
        let link = |w: &&WorkloadConfig| Expected {
            name: w.inner_link.clone(),
            index: self.ends.get(&w.host_link).copied(),
            mac: w
                .mac
                .unwrap_or_else(|| inner_mac(&self.instance, &w.host_link)),
            table: inner_table(&w.inner_link),
        };
        let look = netns::Look {
            instance: self.instance.clone(),
            links: here.iter().map(link).collect(),
            rules: self
                .journal
                .rules()
                .iter()
                .filter(|(place, _)| place == netns)
                .map(|(_, rule)| rule.clone())
                .collect(),
            sysctls,
        };
        Ok(Prepared::Look(known.cookie, look))
    }

    fn observe_files(&self, desired: &HostConfig, observed: &mut Observed) {
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
            match resolver::read(&path) {
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

    async fn change(&mut self, desired: &HostConfig, change: &Change) -> anyhow::Result<()> {
        match change {
            Change::OpenTun(tun) => {
                self.opened.remove(&tun.name);
                (self.tuns.open)(tun)?;
                let links = self.netlink.links().await?;
                let made = links.values().find(|l| l.name == tun.name);
                let index = made
                    .map(|l| l.index)
                    .with_context(|| format!("no link {} was made", tun.name))?;
                self.opened.insert(tun.name.clone(), index);
                Ok(())
            }
            Change::CloseTun { link, name } => self.close_tun(link, name).await,
            Change::CreateVeth(workload) => {
                // Only a descriptor that was checked itself leads to the right namespace.
                let file = netns::open(&workload.netns)?;
                self.inside.entry(workload.netns.clone()).or_default().seen = None;
                self.netlink
                    .create_veth(&desired.instance, workload, file.as_fd())
                    .await
            }
            Change::SetSysctl {
                key,
                value,
                keep: true,
                ..
            } => sysctl::write_journaled(&mut self.journal, key, value),
            Change::SetSysctl { key, value, .. } => sysctl::write(key, value),
            Change::RestoreSysctl { key } => sysctl::restore(&mut self.journal, key),
            Change::ForgetSysctl { key } => sysctl::forget(&mut self.journal, key),
            Change::WriteResolver { path, text } => resolver::write(&mut self.journal, path, text),
            Change::RestoreResolver { path } => resolver::restore(&mut self.journal, path),
            other => self.netlink.apply(other).await,
        }
    }

    /// The packet loop ends and drops the device; a device that outlives it is deleted.
    async fn close_tun(&mut self, link: &str, name: &str) -> anyhow::Result<()> {
        (self.tuns.close)(link);
        self.opened.remove(link);
        let until = Instant::now() + TUN_CLOSING;
        while Instant::now() < until {
            if !self.netlink.links().await?.values().any(|l| l.name == name) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let delete = Change::DeleteLink {
            link: link.to_owned(),
            name: name.to_owned(),
        };
        self.netlink.apply(&delete).await
    }

    /// Changes inside one namespace, entered once.
    async fn change_inside(&mut self, netns: &NetnsRef, changes: Vec<Change>) -> Vec<Failure> {
        let mut rules = self.journal.rules().clone();
        rules.extend(changes.iter().filter_map(|change| match change {
            Change::AddRule { rule, .. } => Some((netns.clone(), rule.clone())),
            _ => None,
        }));
        if let Err(error) = self.journal.set_rules(rules) {
            return vec![failure(
                format!("configure {}", netns.path.display()),
                format!("{error:#}"),
            )];
        }
        let mut left = self.journal.rules().clone();
        for change in &changes {
            if let Change::DelRule { rule, .. } = change {
                left.remove(&(netns.clone(), rule.clone()));
            }
        }
        let known = self.inside.entry(netns.clone()).or_default();
        known.seen = None;
        let mut failures = netns::apply(netns, known.cookie, changes).await;
        // Where one failed, the next look tells which rules still stand.
        if failures.is_empty()
            && let Err(error) = self.journal.set_rules(left)
        {
            failures.push(failure(
                format!("configure {}", netns.path.display()),
                format!("{error:#}"),
            ));
        }
        failures
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
            Ok(refused) => {
                failures.extend(refused.into_iter().map(|why| failure("map a port", why)))
            }
            Err(error) => failures.push(failure("bring the ruleset up to date", error)),
        }
        failures.extend(
            held.1
                .sync(&desired.maps, &observed.link_local)
                .await
                .into_iter()
                .map(|why| failure("proxy a mapped port", why)),
        );
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
        self.observe_files(desired, &mut observed);
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
                desired.clone(),
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
        let mut changes = changes
            .into_iter()
            .filter(|change| guarded || change.removes())
            .peekable();
        while let Some(change) = changes.next() {
            tracing::debug!(%change, "apply");
            if let Namespace::Netns(netns) = change.place().clone() {
                let mut batch = vec![change];
                while let Some(next) =
                    changes.next_if(|next| *next.place() == Namespace::Netns(netns.clone()))
                {
                    batch.push(next);
                }
                failures.extend(self.change_inside(&netns, batch).await);
            } else if let Err(error) = self.change(desired, &change).await {
                failures.push(failure(&change, format!("{error:#}")));
            }
        }
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
            failures
                .extend(firewall::follow(Arc::clone(&self.firewalls), None, desired.clone()).await);
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
                let dead = |netns: &&NetnsRef| {
                    !self.gone.contains(netns) && matches!(netns::exists(netns), Ok(false))
                };
                if self.inside.keys().any(|netns| dead(&netns)) {
                    return;
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
