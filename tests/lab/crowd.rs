//! Many daemons in one subnet, on one switch: what a member of a large subnet holds, and what it costs.

use std::fmt;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{Host, Lab, text, until};

/// How long all daemons may take until they answer, and until all know each other.
const PATIENCE: Duration = Duration::from_secs(180);
/// Joins under way at once.
const AT_ONCE: usize = 2;
/// Addresses that one machine of a crowd may know of another: of IPv6 its own and that of the link.
const EACH: usize = 2;

/// Asks `check` twice a second until it says yes: the program that asks costs more time than the daemon that answers.
///
/// # Errors
/// `what` has not become true in time.
pub fn slowly(what: &str, limit: Duration, mut check: impl FnMut() -> Result<bool>) -> Result<()> {
    let mut next = Instant::now();
    let asked = until(what, limit, || {
        if Instant::now() < next {
            return Ok(false);
        }
        next = Instant::now() + Duration::from_millis(500);
        check()
    });
    asked.map(drop)
}

/// The resident memory of a daemon, in KiB.
///
/// # Errors
/// The kernel does not tell.
pub fn resident(host: &Host) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{}/status", host.pid()?))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let line = line.context("no VmRSS")?;
    let size = line.split_whitespace().next().context("no size")?;
    size.parse().context("a size in KiB")
}

/// Room in the kernel's neighbour tables, of which all namespaces of a machine share one for each family: of 1,024 entries as
/// a rule, which thirty hosts on one switch fill. Then who is new to another is not found, however often it is asked for. What
/// there was before is put back at the end.
struct Room(Vec<(PathBuf, String)>);

impl Room {
    fn of(count: usize) -> Result<Room> {
        let needed = 2 * EACH * count * count;
        let mut room = Room(Vec::new());
        for family in ["ipv4", "ipv6"] {
            // From the last to the first, as each is the bound of the one before.
            for bound in ["gc_thresh3", "gc_thresh2", "gc_thresh1"] {
                let file = PathBuf::from(format!("/proc/sys/net/{family}/neigh/default/{bound}"));
                let before = std::fs::read_to_string(&file)
                    .with_context(|| format!("read {}", file.display()))?;
                if before.trim().parse::<usize>()? < needed {
                    std::fs::write(&file, needed.to_string())
                        .with_context(|| format!("write {}", file.display()))?;
                    room.0.push((file, before));
                }
            }
        }
        Ok(room)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        for (file, before) in &self.0 {
            let _ = std::fs::write(file, before);
        }
    }
}

/// The members of a subnet `lab`; the first founded it.
pub struct Crowd {
    /// The hosts, each with a running daemon.
    pub hosts: Vec<Rc<Host>>,
    _room: Room,
}

/// The least, the mean and the most of some numbers.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    /// The smallest of them.
    pub least: u64,
    /// Their mean, rounded down.
    pub mean: u64,
    /// The largest of them.
    pub most: u64,
}

impl Spread {
    /// Of no numbers all three are 0.
    pub fn of(numbers: &[u64]) -> Spread {
        let count = u64::try_from(numbers.len()).unwrap_or(u64::MAX).max(1);
        Spread {
            least: numbers.iter().copied().min().unwrap_or(0),
            mean: numbers.iter().sum::<u64>() / count,
            most: numbers.iter().copied().max().unwrap_or(0),
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spread { least, mean, most } = self;
        write!(f, "{least} to {most}, {mean} on average")
    }
}

impl Crowd {
    /// So many daemons, started at once, of which all but the first join by one invite; done when each knows all others.
    ///
    /// # Errors
    /// A daemon does not start, or does not join, or they do not agree in time.
    pub fn new(lab: &Lab, count: usize) -> Result<Crowd> {
        let (room, begun) = (Room::of(count)?, Instant::now());
        let names = (0..count).map(|n| format!("n{n}"));
        let hosts = names.map(|name| lab.host(&name));
        let hosts = hosts.collect::<Result<Vec<Rc<Host>>>>()?;
        for host in &hosts {
            // Calls on the LAN go from each to all: many daemons on one machine would be busy with nothing else.
            let name = host.name();
            let text = format!(
                "version = 1\n[node]\nname = \"{name}\"\n[transport]\nlan_discovery = false\n"
            );
            std::fs::write(host.dir().join("byway.toml"), text)
                .context("write the configuration")?;
            host.start_under(&[])?;
        }
        for host in &hosts {
            // Its socket is there before it answers; asked again and again, as many daemons would not have the time to.
            until("each daemon has its socket", PATIENCE, || {
                Ok(host.socket().exists())
            })
            .with_context(|| host.log_tail(10))?;
            slowly("each daemon answers", PATIENCE, || {
                Ok(host.byway(&["status", "--json"])?.code == 0)
            })?;
        }
        println!("  {count} daemons answer after {:?}", begun.elapsed());
        let (first, others) = hosts.split_first().context("a crowd has somebody")?;
        first.json(&["create", "lab"])?;
        let uses = count.to_string();
        let invite = first.json(&["invite", "create", "lab", "--uses", &uses])?;
        let invite = text(&invite, "invite")?;
        let joining = Instant::now();
        for some in others.chunks(AT_ONCE) {
            let join = |host: &Rc<Host>| host.spawn(&["join", &invite]);
            for join in some.iter().map(join).collect::<Result<Vec<_>>>()? {
                join.wait_within(PATIENCE)?;
            }
            for host in some {
                // The kernel may not have followed within a join's limit, where all share the processors of one machine.
                slowly("it has joined", PATIENCE, || {
                    Ok(host.byway(&["join", &invite])?.code == 0)
                })?;
            }
        }
        println!("  all have joined after {:?}", joining.elapsed());
        let crowd = Crowd { hosts, _room: room };
        let agreed = crowd.agree(PATIENCE)?;
        println!("  and know each other {agreed:?} later");
        Ok(crowd)
    }

    /// Waits until each knows all; how long that took.
    ///
    /// # Errors
    /// One of them does not in time.
    pub fn agree(&self, limit: Duration) -> Result<Duration> {
        let begun = Instant::now();
        for host in &self.hosts {
            slowly("each knows all", limit, || {
                Ok(host.members("lab")?.len() == self.hosts.len())
            })
            .with_context(|| host.log_tail(10))?;
        }
        Ok(begun.elapsed())
    }

    /// The members that each is connected to.
    ///
    /// # Errors
    /// A daemon does not answer.
    pub fn connections(&self) -> Result<Vec<u64>> {
        let of = |host: &Rc<Host>| {
            let list = host.json(&["peer", "ls"])?;
            let peers = list["peers"].as_array().context("no `peers`")?;
            let connected = peers.iter().filter(|peer| peer["connected"] == true);
            Ok(u64::try_from(connected.count())?)
        };
        self.hosts.iter().map(of).collect()
    }

    /// The resident memory of each daemon, in KiB.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn resident(&self) -> Result<Vec<u64>> {
        self.hosts.iter().map(|host| resident(host)).collect()
    }

    /// The bytes that each moves in a second on its cable, measured for so long.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn rates(&self, time: Duration) -> Result<Vec<u64>> {
        let (begun, before) = (Instant::now(), self.moved()?);
        std::thread::sleep(time);
        let after = self.moved()?;
        let each = after.iter().zip(&before);
        let bytes = each.map(|(after, before)| after.saturating_sub(*before));
        let milliseconds = u64::try_from(begun.elapsed().as_millis())?.max(1);
        Ok(bytes.map(|bytes| bytes * 1000 / milliseconds).collect())
    }

    /// The bytes that each sent and received on its cable since the start, ARP included.
    ///
    /// # Errors
    /// The kernel does not tell.
    fn moved(&self) -> Result<Vec<u64>> {
        let of = |host: &Rc<Host>| {
            let text = host.ns().ok(&["cat", "/proc/net/dev"])?;
            let line = text
                .lines()
                .find_map(|line| line.trim().strip_prefix("eth0:"));
            let fields = line.context("no eth0")?.split_whitespace();
            let fields: Vec<u64> = fields.filter_map(|f| f.parse().ok()).collect();
            let [received, _, _, _, _, _, _, _, sent, ..] = fields[..] else {
                anyhow::bail!("not what the kernel writes: {text}");
            };
            Ok(received + sent)
        };
        self.hosts.iter().map(of).collect()
    }
}
