//! Whether a socket of this machine already listens where a port map would.
//!
//! Reads the kernel's socket tables of the calling thread's network namespace. Owns and changes nothing. A map put on a
//! port in use would silently take it from the program that has it.

mod diag;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;

use crate::model::host::Proto;
use crate::model::ports::PortRange;

/// Socket states of `/proc/net/tcp` (include/net/tcp_states.h): TCP listens in the one, unconnected UDP is in the other.
const LISTEN: &str = "0A";
const UNCONNECTED: &str = "07";

/// The port of multicast DNS (RFC 6762).
pub const MDNS: u16 = 5353;

/// The reason why a port cannot be mapped: a socket of another program has it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{proto} {address} is in use{}", by(.process.as_deref()))]
pub struct Conflict {
    /// The protocol of the socket.
    pub proto: Proto,
    /// The address that the socket is bound to.
    pub address: SocketAddr,
    /// `nginx (pid 812)`, if that can be seen.
    pub process: Option<String>,
}

fn by(process: Option<&str>) -> impl fmt::Display {
    process.map(|p| format!(" by {p}")).unwrap_or_default()
}

/// One row of a socket table of /proc.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    address: SocketAddr,
    listens: bool,
    inode: u64,
}

/// Reads `0100007F:1F90`, an address as the kernel prints it: 32-bit words of network order shown as host integers.
fn address(text: &str) -> Option<SocketAddr> {
    let (addr, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |i: usize| {
        u32::from_str_radix(addr.get(i * 8..i * 8 + 8)?, 16)
            .ok()
            .map(u32::to_ne_bytes)
    };
    let ip: IpAddr = match addr.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let bytes: [u8; 16] = words.as_flattened().try_into().ok()?;
            Ipv6Addr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

fn row(line: &str) -> Option<Row> {
    let mut fields = line.split_whitespace();
    let local = fields.nth(1)?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?;
    Some(Row {
        address: address(local)?,
        listens: [LISTEN, UNCONNECTED].contains(&state),
        inode: inode.parse().ok()?,
    })
}

/// How a listening socket and a wanted address stand to each other.
#[derive(Debug, PartialEq, Eq)]
enum Overlap {
    None,
    Certain,
    /// A socket on `::` has IPv4 too unless it is marked V6ONLY, which the table does not show.
    IfDualStack,
}

fn overlap(socket: IpAddr, wanted: IpAddr) -> Overlap {
    match (socket, wanted) {
        (IpAddr::V6(any), IpAddr::V4(_)) if any.is_unspecified() => Overlap::IfDualStack,
        _ if socket.is_ipv4() != wanted.is_ipv4() => Overlap::None,
        _ if socket == wanted || socket.is_unspecified() || wanted.is_unspecified() => {
            Overlap::Certain
        }
        _ => Overlap::None,
    }
}

/// Whether a socket of our own could listen there this moment: the kernel's own answer.
fn can_bind(proto: Proto, wanted: SocketAddr) -> bool {
    match proto {
        Proto::Tcp => TcpListener::bind(wanted).is_ok(),
        Proto::Udp => UdpSocket::bind(wanted).is_ok(),
    }
}

fn sockets_in(fds: &Path) -> impl Iterator<Item = u64> {
    let entries = std::fs::read_dir(fds).into_iter().flatten().flatten();
    entries.filter_map(|fd| {
        let link = std::fs::read_link(fd.path()).ok()?;
        link.to_str()?
            .strip_prefix("socket:[")?
            .strip_suffix(']')?
            .parse()
            .ok()
    })
}

fn process_of(inode: u64) -> Option<String> {
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    for process in processes {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<u32>().ok())
        else {
            continue;
        };
        if sockets_in(&process.path().join("fd")).any(|socket| socket == inode) {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (pid {pid})", name.trim()));
        }
    }
    None
}

/// The sockets of this thread's network namespace that listen on any of the ports.
fn rows(proto: Proto, ports: PortRange) -> Vec<Row> {
    // A kernel without socket diagnosis of that protocol still has the text.
    diag::listening(proto, ports).unwrap_or_else(|_| read_tables(proto, ports))
}

/// The same from the tables that the kernel prints.
fn read_tables(proto: Proto, ports: PortRange) -> Vec<Row> {
    let listens = |row: &Row| row.listens && ports.contains(row.address.port());
    tables(proto)
        .lines()
        .filter_map(row)
        .filter(listens)
        .collect()
}

/// The socket tables of this thread's network namespace, as text.
fn tables(proto: Proto) -> String {
    let tables = match proto {
        Proto::Tcp => ["tcp", "tcp6"],
        Proto::Udp => ["udp", "udp6"],
    };
    tables
        .iter()
        .filter_map(|t| std::fs::read_to_string(format!("/proc/thread-self/net/{t}")).ok())
        .collect()
}

/// Checks that no socket of this network namespace has what a map on these ports of `listen` would take.
///
/// `0.0.0.0` overlaps every IPv4 address and `::` every IPv6 address; a dual-stack socket on `::` has IPv4 too. With
/// `listen` unspecified, sockets of this very process on one address do not count: the resolver on the overlay
/// addresses keeps its port (the ruleset leaves it out), and our loopback proxies are the map's own. Nor do our mDNS
/// sockets: they hear multicast, which no map takes.
///
/// Reads files and may bind for a moment: call it from a blocking thread.
///
/// # Errors
/// The conflict, in words for people.
pub fn check(proto: Proto, listen: IpAddr, ports: PortRange) -> Result<(), Conflict> {
    let mut own: Option<HashSet<u64>> = None;
    let mut ours = |row: &Row| {
        own.get_or_insert_with(|| sockets_in(Path::new("/proc/self/fd")).collect())
            .contains(&row.inode)
    };
    for row in rows(proto, ports) {
        let port = row.address.port();
        let conflict = match overlap(row.address.ip(), listen) {
            Overlap::None => false,
            Overlap::Certain if listen.is_unspecified() && !row.address.ip().is_unspecified() => {
                !ours(&row)
            }
            Overlap::Certain if (proto, port) == (Proto::Udp, MDNS) => !ours(&row),
            Overlap::Certain => true,
            Overlap::IfDualStack => !can_bind(proto, SocketAddr::new(listen, port)),
        };
        if conflict {
            return Err(Conflict {
                proto,
                address: row.address,
                process: process_of(row.inode),
            });
        }
    }
    Ok(())
}

/// The listening sockets of other programs in this network namespace at one moment: to read them costs more than to ask
/// of many maps.
///
/// Reads files and may bind for a moment: use it on a blocking thread.
pub struct Foreign(HashMap<(Proto, u16), Vec<Row>>);

impl Foreign {
    /// Reads the socket tables of this network namespace, as far as they concern `ports`. `own` are the inodes of sockets
    /// that are known to be this process's: where those are all there is, nobody looks through its descriptors.
    pub fn read(
        ports: impl IntoIterator<Item = (Proto, PortRange)>,
        own: &HashSet<u64>,
    ) -> Foreign {
        let mut spans: HashMap<Proto, PortRange> = HashMap::new();
        for (proto, ports) in ports {
            let span = spans.entry(proto).or_insert(ports);
            *span = span.spanning(ports);
        }
        let mut found: Vec<(Proto, Row)> = Vec::new();
        for (proto, ports) in spans {
            let others = rows(proto, ports)
                .into_iter()
                .filter(|row| !own.contains(&row.inode));
            found.extend(others.map(|row| (proto, row)));
        }
        let mut sockets: HashMap<_, Vec<Row>> = HashMap::new();
        if !found.is_empty() {
            let own: HashSet<u64> = sockets_in(Path::new("/proc/self/fd")).collect();
            for (proto, row) in found.into_iter().filter(|(_, r)| !own.contains(&r.inode)) {
                let at = sockets.entry((proto, row.address.port()));
                at.or_default().push(row);
            }
        }
        Foreign(sockets)
    }

    /// The one that a map keeps its clients from: the map has the port, whatever listened first or listens since. None
    /// where nobody else listens.
    pub fn shadowed(&self, proto: Proto, listen: IpAddr, ports: PortRange) -> Option<Conflict> {
        ports
            .iter()
            .find_map(|port| self.shadowed_port(proto, listen, port))
    }

    fn shadowed_port(&self, proto: Proto, listen: IpAddr, port: u16) -> Option<Conflict> {
        let found = self.0.get(&(proto, port))?.iter().find(|row| {
            match overlap(row.address.ip(), listen) {
                Overlap::None => false,
                Overlap::Certain => true,
                // Our own proxy has the usual address of loopback.
                Overlap::IfDualStack if listen.is_unspecified() => !can_bind(
                    proto,
                    SocketAddr::new(Ipv4Addr::new(127, 255, 255, 254).into(), port),
                ),
                Overlap::IfDualStack => !can_bind(proto, SocketAddr::new(listen, port)),
            }
        })?;
        Some(Conflict {
            proto,
            address: found.address,
            process: process_of(found.inode),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(proto: Proto, listen: IpAddr, port: u16) -> Result<(), Conflict> {
        super::check(proto, listen, PortRange::new(port, port).unwrap())
    }

    #[test]
    fn addresses_are_read_as_the_kernel_prints_them() {
        // As a little-endian machine shows them.
        if cfg!(target_endian = "little") {
            assert_eq!(
                address("0100007F:1F90"),
                Some("127.0.0.1:8080".parse().unwrap())
            );
            assert_eq!(
                address("B80D0120000000000000000001000000:0035"),
                Some("[2001:db8::1]:53".parse().unwrap())
            );
            assert_eq!(
                address("0000000000000000FFFF00000100007F:0050"),
                Some("127.0.0.1:80".parse().unwrap())
            );
        }
        assert_eq!(address("00000000:0000"), Some("0.0.0.0:0".parse().unwrap()));
        assert_eq!(address("zz:1"), None);
    }

    #[test]
    fn wildcards_overlap_their_family() {
        let ip = |t: &str| t.parse::<IpAddr>().unwrap();
        assert_eq!(overlap(ip("127.0.0.1"), ip("0.0.0.0")), Overlap::Certain);
        assert_eq!(overlap(ip("0.0.0.0"), ip("192.0.2.1")), Overlap::Certain);
        assert_eq!(overlap(ip("192.0.2.1"), ip("192.0.2.2")), Overlap::None);
        assert_eq!(overlap(ip("::"), ip("192.0.2.2")), Overlap::IfDualStack);
        assert_eq!(overlap(ip("0.0.0.0"), ip("::")), Overlap::None);
        assert_eq!(overlap(ip("::1"), ip("::")), Overlap::Certain);
    }

    #[test]
    fn a_listening_socket_is_found_with_its_process() {
        let any = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = any.local_addr().unwrap().port();
        let Err(Conflict {
            process, address, ..
        }) = check(Proto::Tcp, "127.0.0.1".parse().unwrap(), port)
        else {
            panic!("not found")
        };
        assert_eq!(address.port(), port);
        assert!(
            process
                .unwrap()
                .contains(&format!("(pid {})", std::process::id()))
        );
        // In a range it is named among those that are free.
        let around = PortRange::new(port - 1, port.saturating_add(1)).unwrap();
        let conflict = super::check(Proto::Tcp, "127.0.0.1".parse().unwrap(), around);
        assert_eq!(conflict.unwrap_err().address.port(), port);
    }

    #[test]
    fn a_dual_stack_socket_has_ipv4_too() {
        let any = UdpSocket::bind("[::]:0").unwrap();
        let port = any.local_addr().unwrap().port();
        assert!(check(Proto::Udp, "192.0.2.1".parse().unwrap(), port).is_err());
        assert!(check(Proto::Udp, "::1".parse().unwrap(), port).is_err());
        assert!(check(Proto::Tcp, "::1".parse().unwrap(), port).is_ok());
        drop(any);
        assert!(check(Proto::Udp, "::1".parse().unwrap(), port).is_ok());
    }

    #[test]
    fn only_sockets_of_others_are_shadowed() {
        let shadowed = |proto, listen, port| {
            let ports = PortRange::new(port, port).unwrap();
            Foreign::read([(proto, ports)], &HashSet::new()).shadowed(proto, listen, ports)
        };
        let own = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = own.local_addr().unwrap().port();
        assert_eq!(shadowed(Proto::Tcp, "0.0.0.0".parse().unwrap(), port), None);
        // What is said to be our own is believed, and what is not is looked for.
        let ports = PortRange::new(port, port).unwrap();
        let inodes = rows(Proto::Tcp, ports)
            .iter()
            .map(|row| row.inode)
            .collect();
        assert!(Foreign::read([(Proto::Tcp, ports)], &inodes).0.is_empty());
        let script = "import socket, time; s = socket.socket(); s.bind(('127.0.0.2', 0)); s.listen(); \
                      print(s.getsockname()[1], flush=True); time.sleep(60)";
        let mut other = std::process::Command::new("python3")
            .args(["-c", script])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(
            &mut std::io::BufReader::new(other.stdout.take().unwrap()),
            &mut line,
        )
        .unwrap();
        let port = line.trim().parse().unwrap();
        let found = shadowed(Proto::Tcp, "0.0.0.0".parse().unwrap(), port);
        let (elsewhere, udp) = ("127.0.0.3".parse().unwrap(), "0.0.0.0".parse().unwrap());
        let none = (
            shadowed(Proto::Tcp, elsewhere, port),
            shadowed(Proto::Udp, udp, port),
        );
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(none, (None, None));
        let Some(Conflict {
            address, process, ..
        }) = found
        else {
            panic!("not found")
        };
        assert_eq!(address, SocketAddr::new("127.0.0.2".parse().unwrap(), port));
        assert!(process.unwrap().contains(&format!("(pid {})", other.id())));
    }

    #[test]
    fn own_sockets_on_one_address_leave_the_wildcard_free() {
        let own = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = own.local_addr().unwrap().port();
        assert!(check(Proto::Udp, "0.0.0.0".parse().unwrap(), port).is_ok());
        assert!(check(Proto::Udp, "127.0.0.1".parse().unwrap(), port).is_err());
    }

    proptest! {
        #[test]
        fn rows_never_panic(line in "[ 0-9A-F:é]{0,150}") {
            let _ = row(&line);
        }
    }
}
