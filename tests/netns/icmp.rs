//! Messages of ICMP that somebody makes up about our datagrams.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::ci;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, until};
use crate::underlay::{datagrams, pair4, plain_host};

pub const CASES: &[Case] = &[ci!(
    icmp_that_a_neighbour_makes_up_changes_no_path_and_no_size
)];

/// Tells VICTIM again and again, for some seconds, about a datagram that it sent to PEER from port 4100 to 4100, and about a
/// segment: too large for 68, 552 and no bytes, host and port unreachable, and another gateway.
const LIES: &str = r#"
import socket, struct, sys, time
victim, peer, me, seconds = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])
def total(data):
    data += b"\0" * (len(data) % 2)
    n = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    n = (n >> 16) + (n & 0xffff)
    return 0xffff ^ (n + (n >> 16) & 0xffff)
def quoted(proto):
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 1400, 7, 0x4000, 63, proto, 0, socket.inet_aton(victim), socket.inet_aton(peer))
    ip = ip[:10] + struct.pack("!H", total(ip)) + ip[12:]
    return ip + struct.pack("!HHHH", 4100, 4100, 1380, 0)
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
kinds = [(3, 4, 68), (3, 4, 552), (3, 4, 0), (3, 1, 0), (3, 3, 0), (5, 1, struct.unpack("!I", socket.inet_aton(me))[0])]
sent, end = 0, time.monotonic() + seconds
while time.monotonic() < end:
    for proto in (socket.IPPROTO_UDP, socket.IPPROTO_TCP):
        for kind, code, rest in kinds:
            body = struct.pack("!BBHI", kind, code, 0, rest) + quoted(proto)
            body = body[:2] + struct.pack("!H", total(body)) + body[4:]
            s.sendto(body, (victim, 0))
            sent += 1
    time.sleep(0.02)
print(sent)
"#;

/// What a neighbour could change: the size that the path carries, and since when its session stands.
fn state(of: &Host, to: &str) -> Result<(u64, Value)> {
    let shown = of.json(&["peer", "show", to])?;
    let status = of.status("lab")?["peers"][0].clone();
    let mtu = status["mtu"].as_u64().context("no mtu")?;
    Ok((mtu, shown["sessions"][0]["since"].clone()))
}

/// Messages of ICMP that a host's kernel has taken so far.
fn taken(of: &Host) -> Result<u64> {
    let text = of.ns().ok(&["cat", "/proc/net/snmp"])?;
    let line = |n: usize| text.lines().filter(|l| l.starts_with("Icmp:")).nth(n);
    let (names, values) = (line(0).context("no names")?, line(1).context("no values")?);
    let found = names
        .split(' ')
        .zip(values.split(' '))
        .find(|(name, _)| *name == "InDestUnreachs");
    found
        .and_then(|(_, value)| value.parse().ok())
        .context("no InDestUnreachs")
}

/// A12.
fn icmp_that_a_neighbour_makes_up_changes_no_path_and_no_size(lab: &Lab) -> Result<()> {
    let (a, b) = pair4(lab)?;
    let liar = plain_host(lab, "liar")?;
    let inside = b.overlay("lab")?.0;
    until("the path carries whole packets", SOON, || {
        let (mtu, _) = state(&a, "b")?;
        ensure!(mtu >= 1400, "{mtu}");
        Ok(true)
    })?;
    let before = (state(&a, "b")?, taken(&a)?);
    let words = [
        "python3",
        "-c",
        LIES,
        a.under4(),
        b.under4(),
        liar.under4(),
        "4",
    ];
    let mut lies = liar
        .ns()
        .command(&words)
        .stdout(std::process::Stdio::null())
        .spawn()
        .context("start to lie")?;
    std::thread::sleep(Duration::from_millis(200));
    let ping = [
        "ping", "-n", "-q", "-M", "do", "-s", "1300", "-c", "150", "-i", "0.02", "-W", "1", &inside,
    ];
    let said = a.ns().run(&ping);
    let ended = crate::lab::netns::wait_end(&mut lies);
    let said = said?.out;
    ensure!(ended? == 0, "the liar failed");
    ensure!(said.contains(" 150 received"), "{said}");
    let heard = taken(&a)? - before.1;
    println!("  {heard} messages came");
    ensure!(heard > 500, "{heard} messages came");
    datagrams(&a, &b, Duration::from_millis(500))?;
    let after = state(&a, "b")?;
    ensure!(after == before.0, "{:?}, before {:?}", after, before.0);
    // What members tell each other passes, too.
    a.json(&["dns", "add", "lab", "told", "10.0.0.1"])?;
    until("a record follows", SOON, || {
        Ok(b.json(&["dns", "ls", "lab"])?.to_string().contains("told"))
    })
    .map(drop)
}
