//! The way to the host's own resolvers, and to those a container asked before us, for those who may recurse.
//!
//! Owns the list of resolvers and the cache of their answers. It never asks one of this node's own addresses, never adds
//! a search domain, and never lets an answer name an address of ours: an outside name that points into the overlay or at
//! loopback would let a web page reach what it must not (DNS rebinding).

use std::collections::{HashMap, HashSet};
use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::svcb::SvcParamValue;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_resolver::Resolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
    ServerOrderingStrategy,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::{DnsError, NetError};
use ipnet::IpNet;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Semaphore;

use super::before::Before;
use super::counters::{Counters, count};
use super::question::{Forward, Reply};
use super::way::{Door, Way, packed};
use crate::model::address::{is_of_this_machine, is_within};
use crate::model::host::{Former, NetnsRef, Server};

/// How long one resolver has for its answer.
const TRY: Duration = Duration::from_secs(2);

/// After this an asker hears SERVFAIL, however many resolvers were left.
const DEADLINE: Duration = Duration::from_millis(2800);

/// Questions on their way to the host's resolvers at the same time; the next hears SERVFAIL at once.
pub const IN_FLIGHT: usize = 256;

/// Questions in a row that were answered only without mixed case, after which it is left out.
const FOLDS: u32 = 3;

/// How long mixed case is left out then.
const LEFT_OUT: Duration = Duration::from_secs(600);

/// The most answers that are kept in the cache.
const CACHE: u64 = 1024;

/// Resolvers used of `resolv.conf`, as in the C library.
const SERVERS: usize = 3;

/// The most bytes that are read of `resolv.conf`.
const FILE_LIMIT: u64 = 64 * 1024;

/// The host's resolvers.
///
/// Questions go out in mixed case (0x20): an answer over UDP has to repeat it, so that who forges answers has to guess it
/// too. A server that does not is asked over TCP. One that has no TCP either is asked in plain case.
pub(super) struct Upstream {
    resolvers: ArcSwapOption<Resolvers>,
    /// The servers that askers asked before us, by the address of the asker.
    before: ArcSwap<HashMap<IpAddr, Arc<Before>>>,
    permits: Semaphore,
    /// Whether the host names resolvers, and each of them is this node itself.
    is_alone: AtomicBool,
    counters: Arc<Counters>,
}

/// The resolvers of one list of servers, which ask them in mixed and in plain case.
pub(super) struct Resolvers {
    mixed: Resolver<Way>,
    plain: Resolver<Way>,
    folded: Mutex<Folded>,
}

/// What is known of servers that do not keep the case.
#[derive(Debug, Default)]
struct Folded {
    /// Questions in a row that only the plain way answered.
    count: u32,
    /// Until when the mixed way is left out.
    until: Option<Instant>,
}

impl Folded {
    fn leaves_out(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// The mixed way was answered, or was not and the plain way was.
    fn learn(&mut self, mixed: bool, now: Instant) {
        self.count = if mixed {
            0
        } else {
            self.count.saturating_add(1)
        };
        self.until = (self.count >= FOLDS).then_some(now + LEFT_OUT);
    }
}

impl Resolvers {
    fn new(servers: &[SocketAddr]) -> Option<Resolvers> {
        let [mixed, plain] =
            [true, false].map(|mixed| resolver(servers, mixed, CACHE, Way::default()));
        Some(Resolvers {
            mixed: mixed?,
            plain: plain?,
            folded: Mutex::default(),
        })
    }

    fn folded(&self) -> MutexGuard<'_, Folded> {
        self.folded.lock()
    }

    pub(super) async fn lookup(&self, name: &Name, kind: RecordType) -> Result<Lookup, NetError> {
        if self.folded().leaves_out(Instant::now()) {
            return self.plain.lookup(name.clone(), kind).await;
        }
        let mixed = self.mixed.lookup(name.clone(), kind).await;
        if is_answer(&mixed) {
            self.folded().learn(true, Instant::now());
            return mixed;
        }
        let plain = self.plain.lookup(name.clone(), kind).await;
        if is_answer(&plain) {
            let mut folded = self.folded();
            folded.learn(false, Instant::now());
            if folded.until.is_some() {
                tracing::info!(
                    "the host's resolvers change the case of questions and take no TCP: asked in plain case"
                );
            }
        }
        plain
    }
}

/// Whether a server has said something about the name.
pub(super) fn is_answer(result: &Result<Lookup, NetError>) -> bool {
    matches!(
        result,
        Ok(_) | Err(NetError::Dns(DnsError::NoRecordsFound(_)))
    )
}

/// What the list of resolvers was made of: the same again changes nothing.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Source {
    from_file: Vec<SocketAddr>,
    used: Vec<SocketAddr>,
}

impl Upstream {
    pub(super) fn new(counters: Arc<Counters>) -> Upstream {
        let before = ArcSwap::default();
        Upstream {
            resolvers: ArcSwapOption::empty(),
            before,
            permits: Semaphore::new(IN_FLIGHT),
            is_alone: AtomicBool::new(false),
            counters,
        }
    }

    /// Whether there is a resolver to ask.
    pub(super) fn is_ready(&self) -> bool {
        self.resolvers.load().is_some() || !self.before.load().is_empty()
    }

    /// Whether the host names resolvers, and each of them is this node itself: then nobody resolves names outside.
    pub(super) fn is_alone(&self) -> bool {
        self.is_alone.load(Ordering::Relaxed)
    }

    /// From now on these askers' questions go first to whom they asked before us, by namespace and by address. Servers that
    /// the host asks as well are asked from there; addresses in `own` are never asked.
    pub(super) fn follow<'a>(
        &self,
        source: &Source,
        askers: impl Iterator<Item = (&'a NetnsRef, &'a [IpAddr], &'a [Server])>,
        own: &HashSet<IpAddr>,
        door: &Door,
    ) {
        let former = self.before.load();
        let mut before: HashMap<IpAddr, Arc<Before>> = HashMap::new();
        for (netns, addresses, servers) in askers {
            let usable = servers
                .iter()
                .filter(|s| s.zone.is_none() && !own.contains(&s.ip.to_canonical()));
            let servers: Vec<SocketAddr> = usable
                .take(SERVERS)
                .map(|s| SocketAddr::new(s.ip, 53))
                .collect();
            let as_the_host = servers
                .iter()
                .all(|s| !s.ip().is_loopback() && source.used.contains(s));
            if as_the_host {
                continue;
            }
            let known = former
                .values()
                .chain(before.values())
                .find(|known| known.is_for(netns, &servers))
                .cloned();
            let Some(asked) = known.or_else(|| Before::new(netns, &servers, door).map(Arc::new))
            else {
                continue;
            };
            before.extend(
                addresses
                    .iter()
                    .map(|address| (*address, Arc::clone(&asked))),
            );
        }
        self.before.store(Arc::new(before));
    }

    /// Reads `path` again, and asks other resolvers where the list is another. `fixed` replaces the file; addresses in `own`
    /// are never asked on port 53.
    pub(super) async fn refresh(
        &self,
        source: &mut Source,
        path: &Path,
        fixed: Option<&[SocketAddr]>,
        own: &HashSet<IpAddr>,
    ) {
        source.from_file = match fixed {
            Some(fixed) => fixed.to_vec(),
            // Always: a file may change within a tick of its clock, and a link may come after the file that names it.
            None => read(path).await,
        };
        let ours =
            |server: &&SocketAddr| server.port() == 53 && own.contains(&server.ip().to_canonical());
        let used: Vec<SocketAddr> = source
            .from_file
            .iter()
            .filter(|s| !ours(s))
            .take(SERVERS)
            .copied()
            .collect();
        let is_alone = used.is_empty() && !source.from_file.is_empty();
        if is_alone && !self.is_alone() {
            tracing::warn!(
                "the host's resolver file names only this node: nobody resolves names outside of the subnets"
            );
        }
        self.is_alone.store(is_alone, Ordering::Relaxed);
        if used != source.used || self.resolvers.load().is_none() {
            self.resolvers.store(Resolvers::new(&used).map(Arc::new));
            if used != source.used {
                tracing::info!(servers = ?used, "names outside are asked there");
            }
            source.used = used;
        }
    }

    /// Resolves the question and completes its reply. Addresses of who asks are taken out.
    ///
    /// # Cancel safety
    /// Dropping the future gives the place among those [in flight](IN_FLIGHT) back.
    pub(super) async fn resolve(&self, forward: Forward) -> Reply {
        let Ok(_place) = self.permits.try_acquire() else {
            count(&self.counters.overloaded);
            return forward.fail();
        };
        let (host, before) = (
            self.resolvers.load_full(),
            self.before.load().get(&forward.asker).cloned(),
        );
        if host.is_none() && before.is_none() {
            return forward.fail();
        }
        count(&self.counters.forwarded);
        let lookup = async {
            match (&before, &host) {
                (Some(before), host) => {
                    before
                        .lookup(host.as_deref(), &forward.name, forward.kind)
                        .await
                }
                (None, Some(host)) => host.lookup(&forward.name, forward.kind).await,
                (None, None) => Err(NetError::from("there are no resolvers")),
            }
        };
        match tokio::time::timeout(DEADLINE, lookup).await {
            Ok(Ok(lookup)) => {
                let mut answers = lookup.answers().to_vec();
                let before = answers.len();
                answers.retain(|record| !points_into(record, &forward.reach.owned.prefixes));
                // The asker hears its name as it wrote it.
                for record in answers
                    .iter_mut()
                    .filter(|record| record.name == forward.name)
                {
                    record.name.clone_from(&forward.name);
                }
                let taken = u64::try_from(before.saturating_sub(answers.len())).unwrap_or(u64::MAX);
                self.counters.stripped.fetch_add(taken, Ordering::Relaxed);
                forward.finish(ResponseCode::NoError, answers, Vec::new())
            }
            Ok(Err(NetError::Dns(DnsError::NoRecordsFound(none)))) => {
                let soa = none.soa.map(|soa| soa.into_record_of_rdata());
                forward.finish(none.response_code, Vec::new(), soa.into_iter().collect())
            }
            Ok(Err(error)) => {
                tracing::debug!(name = %forward.name, %error, "name outside not resolved");
                forward.fail()
            }
            Err(_) => forward.fail(),
        }
    }
}

/// A resolver for exactly these servers, which asks in mixed case or not and keeps so many answers; none without servers.
pub(super) fn resolver(
    servers: &[SocketAddr],
    mixed: bool,
    kept: u64,
    way: Way,
) -> Option<Resolver<Way>> {
    if servers.is_empty() {
        return None;
    }
    let servers = servers.iter().map(|server| {
        let mut config = NameServerConfig::udp_and_tcp(packed(*server));
        config.connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()]
            .into_iter()
            .map(|mut c| {
                c.port = server.port();
                c
            })
            .collect();
        config
    });
    let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
    let mut builder = Resolver::builder_with_config(config, way);
    *builder.options_mut() = options(kept);
    builder.options_mut().case_randomization = mixed;
    builder
        .build()
        .inspect_err(|error| tracing::warn!(%error, "resolvers cannot be used"))
        .ok()
}

fn options(kept: u64) -> ResolverOpts {
    let mut options = ResolverOpts::default();
    options.timeout = TRY;
    options.attempts = 1;
    options.ndots = 0;
    options.cache_size = kept;
    options.max_active_requests = IN_FLIGHT;
    // The order of the file is the administrator's; the second is asked beside the first.
    options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
    options.num_concurrent_reqs = 2;
    // The hosts file is this machine's, not the workloads'.
    options.use_hosts_file = ResolveHosts::Never;
    options.positive_max_ttl = Some(Duration::from_secs(3600));
    options.negative_max_ttl = Some(Duration::from_secs(60));
    options
}

/// The servers of a `resolv.conf`; none where it cannot be read, or is no regular file: a FIFO would be waited for.
pub(super) async fn read(path: &Path) -> Vec<SocketAddr> {
    let path = path.to_owned();
    let text = tokio::task::spawn_blocking(move || -> io::Result<Vec<u8>> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)?;
        let mut text = Vec::new();
        if file.metadata()?.is_file() {
            file.take(FILE_LIMIT).read_to_end(&mut text)?;
        }
        Ok(text)
    });
    match text.await {
        Ok(Ok(text)) => nameservers(&String::from_utf8_lossy(&text)),
        Ok(Err(_)) | Err(_) => Vec::new(),
    }
}

/// The servers a `resolv.conf` names, in order. A link that an address is on and that is not there (yet) leaves it out.
fn nameservers(text: &str) -> Vec<SocketAddr> {
    let address = |server: Server| {
        let scope = match &server.zone {
            Some(zone) => zone
                .parse()
                .ok()
                .or_else(|| nix::net::if_::if_nametoindex(zone.as_str()).ok())?,
            None => 0,
        };
        Some(match server.ip {
            IpAddr::V4(ip) => SocketAddr::from((ip, 53)),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, 53, 0, scope).into(),
        })
    };
    Former::parse(text)
        .servers
        .into_iter()
        .filter_map(address)
        .collect()
}

/// Whether a record from outside names an address that only we may name.
fn points_into(record: &Record, denied: &[IpNet]) -> bool {
    let hints = |params: &[(_, SvcParamValue)]| {
        params.iter().any(|(_, value)| match value {
            SvcParamValue::Ipv4Hint(hint) => {
                hint.0.iter().any(|a| is_denied(IpAddr::V4(a.0), denied))
            }
            SvcParamValue::Ipv6Hint(hint) => {
                hint.0.iter().any(|a| is_denied(IpAddr::V6(a.0), denied))
            }
            _ => false,
        })
    };
    match &record.data {
        RData::A(a) => is_denied(IpAddr::V4(a.0), denied),
        RData::AAAA(a) => is_denied(IpAddr::V6(a.0), denied),
        RData::HTTPS(https) => hints(&https.0.svc_params),
        RData::SVCB(svcb) => hints(&svcb.svc_params),
        _ => false,
    }
}

/// This machine, its link, a metadata service, and the overlay's prefixes, in every form an IPv6 address gives them.
fn is_denied(address: IpAddr, denied: &[IpNet]) -> bool {
    is_of_this_machine(address) || is_within(address, denied)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_server_on_a_link_is_asked_there() {
        let text = "nameserver 192.0.2.1\nnameserver fe80::1%lo\nnameserver fe80::2%7\nnameserver fe80::3%no-such-link\n";
        let expected: Vec<SocketAddr> = ["192.0.2.1:53", "[fe80::1%1]:53", "[fe80::2%7]:53"]
            .iter()
            .map(|s| s.parse().unwrap())
            .collect();
        assert_eq!(nameservers(text), expected);
    }

    #[test]
    fn addresses_of_ours_are_recognised_in_every_form() {
        let denied: Vec<IpNet> = vec![
            "10.42.0.0/16".parse().unwrap(),
            "fd00:42::/48".parse().unwrap(),
        ];
        for bad in [
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "169.254.169.254",
            "fe80::1",
            "10.42.1.1",
            "fd00:42::5",
            "0.0.0.0",
            "::",
            "::ffff:127.0.0.1",
            "::ffff:10.42.1.1",
            "::127.0.0.1",
            "64:ff9b::10.42.1.1",
            "64:ff9b::127.0.0.1",
            "2002:a2a:101::1",
            "fd00:ec2::254",
        ] {
            assert!(is_denied(bad.parse().unwrap(), &denied), "{bad}");
        }
        for good in ["192.0.2.1", "10.43.0.1", "2001:db8::1", "fd00:43::1"] {
            assert!(!is_denied(good.parse().unwrap(), &denied), "{good}");
        }
    }

    #[test]
    fn plain_case_is_for_a_while_and_only_where_nothing_else_is_answered() {
        let (mut folded, now) = (Folded::default(), Instant::now());
        for _ in 0..10 {
            folded.learn(false, now);
            folded.learn(false, now);
            assert!(!folded.leaves_out(now));
            folded.learn(true, now);
        }
        (0..FOLDS).for_each(|_| folded.learn(false, now));
        assert!(folded.leaves_out(now) && !folded.leaves_out(now + LEFT_OUT));
    }

    proptest! {
        #[test]
        fn resolv_conf_never_panics(text in "(nameserver |[ -~\n]){0,80}") {
            let _ = nameservers(&text);
        }
    }

    #[tokio::test]
    async fn own_addresses_are_never_asked() {
        let upstream = Upstream::new(Arc::default());
        let mut source = Source::default();
        let own = HashSet::from(["10.42.7.1".parse().unwrap()]);
        let fixed = [
            "10.42.7.1:53".parse().unwrap(),
            "[::ffff:10.42.7.1]:53".parse().unwrap(),
        ];
        upstream
            .refresh(&mut source, Path::new("/none"), Some(&fixed), &own)
            .await;
        assert!(!upstream.is_ready());
    }

    #[tokio::test]
    async fn changed_resolv_conf_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let upstream = Upstream::new(Arc::default());
        let mut source = Source::default();
        upstream
            .refresh(&mut source, &path, None, &HashSet::new())
            .await;
        assert!(!upstream.is_ready());
        std::fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        upstream
            .refresh(&mut source, &path, None, &HashSet::new())
            .await;
        assert_eq!(source.used, ["192.0.2.1:53".parse().unwrap()]);
        let when = std::fs::metadata(&path).unwrap().modified().unwrap();
        std::fs::write(&path, "nameserver 192.0.2.2\n").unwrap();
        // A tool that keeps the time of what it copies leaves no other trace.
        std::fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(when)
            .unwrap();
        upstream
            .refresh(&mut source, &path, None, &HashSet::new())
            .await;
        assert_eq!(source.used, ["192.0.2.2:53".parse().unwrap()]);
    }
}
