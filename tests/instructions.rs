//! How many instructions the steps of a packet take, counted by callgrind: time is too noisy to be a gate, this is not.
//!
//! `scripts/instructions` compiles this one program optimised, without the rest of byway: it includes the pure modules
//! themselves. It then runs itself under valgrind, once for each step, and compares with [`STEPS`]. Run any other way it
//! says that it was skipped. Encryption is not counted: valgrind hides the widest instructions, so time measures that.
//!
//! A figure depends a little on the compiler and the C library; a limit is exceeded beyond 10 %. A change that is meant to
//! cost more raises its limit here, in the same commit.

#![expect(dead_code, unused_imports, reason = "the pure modules are included whole, and used in part")]

// `crate::` in them means this program.
#[path = "../src/model/mod.rs"]
mod model;
#[path = "../src/packet/mod.rs"]
mod packet;
#[path = "../src/tun/linux/virtio.rs"]
mod virtio;
#[path = "../src/wire"]
mod wire {
    pub mod datagram;
}

use std::collections::BTreeSet;
use std::error::Error;
use std::hint::black_box;
use std::net::IpAddr;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;

#[cfg(test)]
use byway::testing;
use model::id::{PeerId, SubnetId};
use model::routes::Owner;
use model::view::SubnetView;
use model::zone::Zone;
use packet::cut::Cut;
use packet::offload::{Kind, Offload, Rebuild};
use packet::rejoin::{Piece, rejoin};
use packet::{mss, parse};
use wire::datagram::{Bundle, OVERHEAD, TRAILER, Trailer, append, split};

/// How often a step runs inside the window that is counted.
const ROUNDS: u64 = 1000;
/// Beyond its limit by this many percent a step fails.
const SLACK: u64 = 10;
/// Payload of a path of 1500 bytes over IPv4.
const PATH: usize = 1472;

/// One step: its name, the most instructions it may take, and what it does.
struct Step {
    name: &'static str,
    limit: u64,
    what: &'static str,
    run: fn() -> Result<(), Box<dyn Error>>,
}

const STEPS: &[Step] = &[
    Step { name: "parse", limit: 212, what: "one TCP packet over IPv4", run: parse_v4 },
    Step { name: "parse-v6", limit: 261, what: "one UDP packet over IPv6", run: parse_v6 },
    Step { name: "route", limit: 223, what: "source and destination among 10,000 prefixes", run: route },
    Step { name: "admit", limit: 751, what: "the same from a peer, one of 200 members", run: admit },
    Step { name: "mss", limit: 178, what: "a SYN, its checksum mended", run: clamp },
    Step { name: "cut", limit: 1138, what: "60 KB in 44 pieces: plan, ranges, trailers", run: cut },
    Step {
        name: "join",
        limit: 6936,
        what: "the same opened in place: trailers, one packet, its virtio header",
        run: join,
    },
    Step { name: "bundle", limit: 889, what: "16 small packets put in", run: bundle },
    Step { name: "unbundle", limit: 804, what: "16 small packets taken out", run: unbundle },
];

/// What callgrind counts: everything between its first and its last instruction. One function that is never inlined, so
/// that it can be named.
#[inline(never)]
fn counted_window(work: &mut dyn FnMut()) {
    for _ in 0..ROUNDS {
        work();
    }
    // Not a tail call: the window ends when this returns.
    black_box(());
}

fn address(text: &str) -> Result<IpAddr, Box<dyn Error>> {
    Ok(text.parse()?)
}

/// A TCP packet over IPv4 with 12 bytes of options, its checksum left undone.
fn tcp(flags: u8, options: [u8; 12], payload: usize) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut bytes = vec![0x45, 0];
    bytes.extend_from_slice(&u16::try_from(52 + payload)?.to_be_bytes());
    bytes.extend_from_slice(&[0x12, 0x34, 0x40, 0, 64, 6, 0, 0, 10, 0, 3, 7, 10, 0, 200, 9]);
    bytes.extend_from_slice(&[0x12, 0x34, 0x56, 0x78, 0, 0, 1, 0, 0, 0, 2, 0, 0x80, flags, 1, 0, 0, 0, 0, 0]);
    bytes.extend_from_slice(&options);
    bytes.resize(52 + payload, 0x5a);
    Ok(bytes)
}

/// A UDP packet over IPv6.
fn udp6(payload: usize) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend_from_slice(&u16::try_from(8 + payload)?.to_be_bytes());
    bytes.extend_from_slice(&[17, 64]);
    bytes.resize(40, 0xfd);
    bytes.extend_from_slice(&[0x12, 0x34, 0x56, 0x78]);
    bytes.extend_from_slice(&u16::try_from(8 + payload)?.to_be_bytes());
    bytes.resize(48 + payload, 0x5a);
    Ok(bytes)
}

fn parse_v4() -> Result<(), Box<dyn Error>> {
    let bytes = tcp(0x10, [1; 12], 1300)?;
    counted_window(&mut || {
        let _ = black_box(parse(black_box(&bytes)));
    });
    Ok(())
}

fn parse_v6() -> Result<(), Box<dyn Error>> {
    let bytes = udp6(1200)?;
    counted_window(&mut || {
        let _ = black_box(parse(black_box(&bytes)));
    });
    Ok(())
}

/// 200 members with 50 addresses each, and a prefix of our own; the member that holds 10.0.200.9.
fn subnet() -> Result<(SubnetView, PeerId), Box<dyn Error>> {
    let mut routes = vec![("10.0.3.0/24".parse()?, Owner::Local)];
    let mut members = BTreeSet::new();
    for member in 0..200u8 {
        let peer = PeerId([member; 32]);
        members.insert(peer);
        for host in 0..50u8 {
            routes.push((format!("10.0.{}.{host}/32", member.saturating_add(4)).parse()?, Owner::Member(peer)));
        }
    }
    let name: model::id::Name = "lab".parse()?;
    let view = SubnetView {
        id: SubnetId([0; 16]),
        interface: "bw-lab".into(),
        cidr4: None,
        cidr6: None,
        addresses: Vec::new(),
        mtu: 1420,
        routes: Arc::new(routes.into_iter().collect()),
        here: BTreeSet::from([address("10.0.3.7")?]),
        members: members.into(),
        hosts: Default::default(),
        data_keys: Default::default(),
        zone: Arc::new(Zone::empty(&name)),
        name,
    };
    Ok((view, PeerId([196; 32])))
}

fn route() -> Result<(), Box<dyn Error>> {
    let (view, peer) = subnet()?;
    let (ours, theirs) = (address("10.0.3.7")?, address("10.0.200.9")?);
    if view.route(ours, theirs) != Ok(model::view::Hop::Peer(peer)) {
        return Err("routed elsewhere".into());
    }
    counted_window(&mut || {
        let _ = black_box(black_box(&view).route(black_box(ours), black_box(theirs)));
    });
    Ok(())
}

fn admit() -> Result<(), Box<dyn Error>> {
    let (view, peer) = subnet()?;
    let (ours, theirs) = (address("10.0.3.7")?, address("10.0.200.9")?);
    view.admit(peer, theirs, ours)?;
    counted_window(&mut || {
        let _ = black_box(black_box(&view).admit(peer, black_box(theirs), black_box(ours)));
    });
    Ok(())
}

fn clamp() -> Result<(), Box<dyn Error>> {
    let syn = tcp(0x02, [2, 4, 0x05, 0xb4, 4, 2, 1, 1, 1, 3, 3, 7], 0)?;
    let packet = parse(&syn)?;
    let mut bytes = syn.clone();
    if !mss::clamp(&mut bytes, &packet, &Offload::NONE, 1280) {
        return Err("not lowered".into());
    }
    counted_window(&mut || {
        bytes.copy_from_slice(&syn);
        black_box(mss::clamp(black_box(&mut bytes), &packet, &Offload::NONE, black_box(1280)));
    });
    Ok(())
}

/// A super-packet of 60,052 bytes and how it is cut.
fn super_packet() -> Result<(Vec<u8>, Offload), Box<dyn Error>> {
    Ok((tcp(0x18, [1; 12], 60_000)?, Offload { kind: Kind::Tcp4, gso_size: 1368, header_len: 52 }))
}

fn cut() -> Result<(), Box<dyn Error>> {
    let (bytes, offload) = super_packet()?;
    let packet = parse(&bytes)?;
    Cut::plan(&packet, &offload, PATH - OVERHEAD).filter(|cut| cut.count == 44).ok_or("cut otherwise")?;
    counted_window(&mut || {
        let Some(cut) = Cut::plan(black_box(&packet), black_box(&offload), black_box(PATH - OVERHEAD)) else { return };
        for index in 0..cut.count {
            let trailer = Trailer::Piece { piece: cut.describe(index), id: 7 }.encode();
            black_box((bytes.get(cut.piece(index)), trailer));
        }
    });
    Ok(())
}

fn join() -> Result<(), Box<dyn Error>> {
    let (bytes, offload) = super_packet()?;
    let cut = Cut::plan(&parse(&bytes)?, &offload, PATH - OVERHEAD).ok_or("not cut")?;
    // What is left of each plaintext once it was opened to the end of the one before: the end of its payload is enough.
    let mut ends = Vec::new();
    for index in 0..cut.count {
        let mut end = bytes.get(cut.piece(index)).ok_or("out of range")?.to_vec();
        end.extend_from_slice(bytes.get(..cut.headers).ok_or("out of range")?);
        end.extend_from_slice(&Trailer::Piece { piece: cut.describe(index), id: 7 }.encode());
        ends.push(end);
    }
    let mut whole = bytes.clone();
    let mut joined = || -> Option<usize> {
        let mut run: Option<(Piece, u16, usize)> = None;
        for plaintext in &ends {
            let (body, Trailer::Piece { piece, id }) = split(black_box(plaintext))? else { return None };
            let payload = body.checked_sub(piece.headers)?;
            match &mut run {
                _ if !piece.holds(payload) => return None,
                Some((first, former, count)) if *former == id && first.is_followed_by(*count, &piece) => *count += 1,
                _ => run = Some((piece, id, 1)),
            }
        }
        let (first, _, count) = run?;
        // The headers as they came: the last round has changed them.
        whole.get_mut(..52)?.copy_from_slice(bytes.get(..52)?);
        let offload = rejoin(black_box(&mut whole), &first, count).ok()?;
        let packet = parse(&whole).ok()?;
        let undone = Rebuild::plan(&packet, &offload).ok()?.apply(&mut whole);
        black_box(virtio::encode(undone));
        Some(count)
    };
    if joined() != Some(44) {
        return Err("not joined to one".into());
    }
    counted_window(&mut || {
        black_box(joined());
    });
    Ok(())
}

fn bundle() -> Result<(), Box<dyn Error>> {
    let small = udp6(64)?;
    let mut body = Vec::with_capacity(4096);
    counted_window(&mut || {
        body.clear();
        for _ in 0..16 {
            black_box(append(&mut body, black_box(&small), true));
        }
    });
    Ok(())
}

fn unbundle() -> Result<(), Box<dyn Error>> {
    let (small, mut body) = (udp6(64)?, Vec::new());
    for _ in 0..16 {
        append(&mut body, &small, true);
    }
    body.extend_from_slice(&Trailer::Bundle.encode());
    counted_window(&mut || {
        let (length, mut bundle, mut count) = (body.len().saturating_sub(TRAILER), Bundle::default(), 0);
        if split(black_box(&body)) != Some((length, Trailer::Bundle)) {
            return;
        }
        while let Some(entry) = bundle.next(body.get(..length).unwrap_or_default()) {
            count += usize::from(black_box(entry).is_ok());
        }
        black_box(count);
    });
    Ok(())
}

/// Runs this program again under callgrind; the instructions one round of `step` took.
fn count(step: &Step) -> Result<u64, Box<dyn Error>> {
    let out = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no", "--toggle-collect=*counted_window*"])
        .args(["--callgrind-out-file=/dev/null", "--error-exitcode=0"])
        .arg(std::env::current_exe()?)
        .args(["--step", step.name])
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&out.stderr);
    let total =
        text.lines().find_map(|line| line.split_once("Collected : ")).map(|(_, number)| number.trim().parse::<u64>());
    match total {
        Some(Ok(total)) if out.status.success() && total > 0 => Ok(total / ROUNDS),
        _ => Err(format!("callgrind counted nothing: {text}").into()),
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, name] = &arguments[..]
        && flag == "--step"
    {
        let result = STEPS.iter().find(|step| step.name == name).map(|step| (step.run)());
        return if matches!(result, Some(Ok(()))) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let hindrance = if cfg!(debug_assertions) {
        Some("not optimised: run scripts/instructions")
    } else if !cfg!(target_arch = "x86_64") {
        Some("the limits are those of x86-64")
    } else if Command::new("valgrind").arg("--version").output().is_err() {
        Some("valgrind is missing")
    } else {
        None
    };
    if let Some(reason) = hindrance {
        println!("SKIP instructions: {reason}");
        println!("0 passed, 0 failed, {} skipped", STEPS.len());
        return ExitCode::SUCCESS;
    }
    let (mut passed, mut failed) = (0, 0);
    for step in STEPS {
        let (ok, figure) = match count(step) {
            Ok(taken) => (taken * 100 <= step.limit * (100 + SLACK), format!("{taken:>6}")),
            Err(error) => (false, error.to_string()),
        };
        (passed, failed) = if ok { (passed + 1, failed) } else { (passed, failed + 1) };
        let verdict = if ok { "ok" } else { "FAILED" };
        println!("{:<9} {figure} of {:>6} instructions  {verdict:<6}  {}", step.name, step.limit, step.what);
    }
    println!("{passed} passed, {failed} failed, 0 skipped");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
