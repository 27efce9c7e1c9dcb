//! How many instructions the steps of a packet take, and a change of a large subnet, counted by callgrind: time is too noisy
//! to be a gate, this is not.
//!
//! `scripts/instructions` compiles this one program optimised, without the rest of byway: it includes the pure modules
//! themselves. It then runs itself under valgrind, once for each step, and compares with [`STEPS`]. Run any other way it
//! says that it was skipped. Encryption is not counted: valgrind hides the widest instructions, so time measures that. The
//! signature and the digest of a change are counted, as they are without those.
//!
//! A figure depends a little on the compiler and the C library; a limit is exceeded beyond 10 %. A change that is meant to
//! cost more raises its limit here, in the same commit.

#![expect(
    dead_code,
    unused_imports,
    reason = "the pure modules are included whole, and used in part"
)]

// `crate::` in them means this program.
#[path = "../src/model/mod.rs"]
mod model;
#[path = "../src/packet/mod.rs"]
mod packet;
// By path like the rest: with the library linked, generic code of its development build would be counted.
#[cfg(test)]
#[path = "../src/testing/dice.rs"]
mod testing;
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

use model::host::{NetnsRef, Proto, ResolvConf};
use model::id::{PeerId, SubnetId};
use model::local::{Map, Target, Workload};
use model::members::{Identity, Subnet};
use model::record::{
    Admission, Announcement, Body, Grant, Role, Signed, Term, Verified, WorkloadEntry,
};
use model::routes::Owner;
use model::state::{Draft, Founding, State};
use model::subnet::Absorbed;
use model::upkeep::Attendance;
use model::view::SubnetView;
use model::zone::Zone;
use packet::offload::{Kind, Offload, Rebuild};
use packet::reassemble::{Segment, reassemble};
use packet::segment_plan::SegmentPlan;
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
    Step {
        name: "parse",
        limit: 212,
        what: "one TCP packet over IPv4",
        run: parse_v4,
    },
    Step {
        name: "parse-v6",
        limit: 261,
        what: "one UDP packet over IPv6",
        run: parse_v6,
    },
    Step {
        name: "route",
        limit: 223,
        what: "source and destination among 10,000 prefixes",
        run: route,
    },
    Step {
        name: "admit",
        limit: 751,
        what: "the same from a peer, one of 200 members",
        run: admit,
    },
    Step {
        name: "mss",
        limit: 178,
        what: "a SYN, its checksum mended",
        run: clamp,
    },
    Step {
        name: "cut",
        limit: 1138,
        what: "60 KB in 44 segments: plan, ranges, trailers",
        run: cut,
    },
    Step {
        name: "join",
        limit: 6936,
        what: "the same opened in place: trailers, one packet, its virtio header",
        run: join,
    },
    Step {
        name: "bundle",
        limit: 889,
        what: "16 small packets put in",
        run: bundle,
    },
    Step {
        name: "unbundle",
        limit: 804,
        what: "16 small packets taken out",
        run: unbundle,
    },
    Step {
        name: "dns-add",
        limit: 889_647,
        what: "a name decided, written for the disk and made true; 1,000 members with 50 workloads",
        run: dns_add,
    },
    Step {
        name: "attach",
        limit: 1_074_756,
        what: "a workload there",
        run: attach,
    },
    Step {
        name: "map-add",
        limit: 291_447,
        what: "a port map there",
        run: map_add,
    },
    Step {
        name: "pushed",
        limit: 112_587,
        what: "a checked announcement of a member there",
        run: pushed,
    },
    Step {
        name: "copy",
        limit: 1005,
        what: "a copy of that subnet, taken and dropped",
        run: copy,
    },
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
    bytes.extend_from_slice(&[
        0x12, 0x34, 0x56, 0x78, 0, 0, 1, 0, 0, 0, 2, 0, 0x80, flags, 1, 0, 0, 0, 0, 0,
    ]);
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
            routes.push((
                format!("10.0.{}.{host}/32", member.saturating_add(4)).parse()?,
                Owner::Member(peer),
            ));
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
        black_box(mss::clamp(
            black_box(&mut bytes),
            &packet,
            &Offload::NONE,
            black_box(1280),
        ));
    });
    Ok(())
}

/// A super-packet of 60,052 bytes and how it is cut.
fn super_packet() -> Result<(Vec<u8>, Offload), Box<dyn Error>> {
    Ok((
        tcp(0x18, [1; 12], 60_000)?,
        Offload {
            kind: Kind::Tcp4,
            gso_size: 1368,
            header_len: 52,
        },
    ))
}

fn cut() -> Result<(), Box<dyn Error>> {
    let (bytes, offload) = super_packet()?;
    let packet = parse(&bytes)?;
    SegmentPlan::new(&packet, &offload, PATH - OVERHEAD)
        .filter(|plan| plan.count == 44)
        .ok_or("cut otherwise")?;
    counted_window(&mut || {
        let Some(plan) = SegmentPlan::new(
            black_box(&packet),
            black_box(&offload),
            black_box(PATH - OVERHEAD),
        ) else {
            return;
        };
        for index in 0..plan.count {
            let trailer = Trailer::Segment {
                segment: plan.describe(index),
                id: 7,
            }
            .encode();
            black_box((bytes.get(plan.range(index)), trailer));
        }
    });
    Ok(())
}

fn join() -> Result<(), Box<dyn Error>> {
    let (bytes, offload) = super_packet()?;
    let plan = SegmentPlan::new(&parse(&bytes)?, &offload, PATH - OVERHEAD).ok_or("not cut")?;
    // What is left of each plaintext once it was opened to the end of the one before: the end of its payload is enough.
    let mut ends = Vec::new();
    for index in 0..plan.count {
        let mut end = bytes.get(plan.range(index)).ok_or("out of range")?.to_vec();
        end.extend_from_slice(bytes.get(..plan.headers).ok_or("out of range")?);
        end.extend_from_slice(
            &Trailer::Segment {
                segment: plan.describe(index),
                id: 7,
            }
            .encode(),
        );
        ends.push(end);
    }
    let mut whole = bytes.clone();
    let mut joined = || -> Option<usize> {
        let mut run: Option<(Segment, u16, usize)> = None;
        for plaintext in &ends {
            let (body, Trailer::Segment { segment, id }) = split(black_box(plaintext))? else {
                return None;
            };
            let payload = body.checked_sub(segment.headers)?;
            match &mut run {
                _ if !segment.holds(payload) => return None,
                Some((first, former, count))
                    if *former == id && first.is_followed_by(*count, &segment) =>
                {
                    *count += 1
                }
                _ => run = Some((segment, id, 1)),
            }
        }
        let (first, _, count) = run?;
        // The headers as they came: the last round has changed them.
        whole.get_mut(..52)?.copy_from_slice(bytes.get(..52)?);
        let offload = reassemble(black_box(&mut whole), &first, count).ok()?;
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
        let (length, mut bundle, mut count) =
            (body.len().saturating_sub(TRAILER), Bundle::default(), 0);
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

const NOW: u64 = 1_800_000_000;

fn name(text: &str) -> Result<model::id::Name, Box<dyn Error>> {
    text.parse().map_err(|_| format!("the name {text}").into())
}

fn identity(n: u16) -> Identity {
    let mut seed = [1; 32];
    seed[..2].copy_from_slice(&n.to_le_bytes());
    Identity::new(&seed, seed, seed.map(|byte| !byte))
}

fn announcement(id: SubnetId, n: u16, version: u64) -> Result<Verified, Box<dyn Error>> {
    let [high, low] = n.to_be_bytes();
    let workloads = (0..50u8).map(|w| {
        let address = IpAddr::from([10, high + 1, low, w + 10]);
        Ok(WorkloadEntry {
            name: name(&format!("w{w}-{n}"))?,
            addresses: vec![address],
        })
    });
    let workloads = workloads.collect::<Result<_, Box<dyn Error>>>()?;
    let announcement = Announcement {
        version,
        issued: NOW,
        workloads,
        ..Announcement::default()
    };
    Ok(Signed::new(id, &Body::Announcement(announcement), &identity(n).key).check()?)
}

/// The founder's state: 1,000 members, each with 50 workloads.
fn large() -> Result<(State, SubnetId), Box<dyn Error>> {
    let mut state = State::new(identity(0));
    let me = state.me.clone();
    let founding = Founding {
        name: name("lab")?,
        cidr4: Some(Some("10.0.0.0/8".parse()?)),
        cidr6: None,
        block4: Some(24),
        admission: Admission::Approve,
        domain: None,
        grant_life: None,
        member: name("m0")?,
        around: Default::default(),
        salt: [7; 16],
        host: Default::default(),
    };
    let failed = |error: model::error::Error| error.message;
    let mut subnet = state.found(founding, NOW).map_err(failed)?;
    let id = subnet.records.id;
    for n in 1..1000u16 {
        let (who, [high, low]) = (identity(n), n.to_be_bytes());
        let grant = Grant {
            subject: who.peer,
            data_key: who.data_key,
            seal_key: who.seal_key,
            name: name(&format!("m{n}"))?,
            role: Role::Member,
            generation: 1,
            version: 1,
            seat: 0,
            addresses: vec![IpAddr::from([10, high + 1, low, 1])],
            leases: vec![format!("10.{}.{low}.0/24", high + 1).parse()?],
            not_before: NOW,
            not_after: NOW + 86_400,
            term: Term::Full,
            labels: Default::default(),
        };
        for record in [
            Signed::new(id, &Body::Grant(grant), &me.key).check()?,
            announcement(id, n, 1)?,
        ] {
            if subnet.records.absorb(record) != Absorbed::New {
                return Err("a record was refused".into());
            }
        }
    }
    subnet.remember(NOW);
    for w in 0..50u8 {
        subnet
            .attach(&me, workload(w)?, None, NOW)
            .map_err(failed)?;
        subnet.remember(NOW);
    }
    subnet
        .upkeep(&me, &Attendance::default(), NOW)
        .map_err(failed)?;
    subnet.keep_own(&me, &[], NOW).map_err(failed)?;
    let mut draft = Draft::default();
    draft.put(subnet);
    let _ = state.absorb(draft);
    state.remember(NOW);
    Ok((state, id))
}

fn workload(n: u8) -> Result<Workload, Box<dyn Error>> {
    Ok(Workload {
        name: name(&format!("own-{n}"))?,
        target: Target::Netns(format!("own-{n}")),
        netns: Some(NetnsRef {
            path: format!("/run/netns/own-{n}").into(),
            device: 4,
            inode: u64::from(n) + 1,
            cookie: None,
        }),
        host_link: format!("bw{n}"),
        inner_link: "eth0".to_owned(),
        addresses: vec![],
        resolv_conf: ResolvConf::None,
        mac: None,
        since: NOW,
    })
}

/// Counts a decision about the large subnet, from the copy to what the store and the others get, made true and taken back.
fn decided(
    decide: impl Fn(&mut Subnet, &Identity) -> Result<(), model::error::Error>,
) -> Result<(), Box<dyn Error>> {
    let (mut state, id) = large()?;
    let mut done = true;
    counted_window(&mut || {
        let Some(mut copy) = state.subnets.get(&id).cloned() else {
            return;
        };
        done &= decide(&mut copy, &state.me).is_ok();
        let mut draft = Draft::default();
        draft.put(copy);
        done &= finish(&mut state, draft);
    });
    if done { Ok(()) } else { Err("refused".into()) }
}

/// What the store gets, made true and taken back.
fn finish(state: &mut State, draft: Draft) -> bool {
    let writes = draft.changes(state).into_writes();
    let undo = state.absorb(draft);
    let _ = state.absorb(undo);
    !black_box(writes).is_empty()
}

fn dns_add() -> Result<(), Box<dyn Error>> {
    let text = [model::zone::RecordData::Txt("x".into())];
    decided(|subnet, me| subnet.dns_add(me, "more", &text, 60, NOW))
}

fn attach() -> Result<(), Box<dyn Error>> {
    let more = workload(50)?;
    decided(|subnet, me| subnet.attach(me, more.clone(), None, NOW).map(drop))
}

fn map_add() -> Result<(), Box<dyn Error>> {
    let map = Map {
        name: name("more")?,
        proto: Proto::Tcp,
        listen: IpAddr::from([192, 0, 2, 1]),
        port: 80,
        target: "own-7".to_owned(),
        target_port: 80,
        allow: vec![],
    };
    decided(|subnet, me| subnet.map_add(me, map.clone(), &[], NOW))
}

fn pushed() -> Result<(), Box<dyn Error>> {
    let (mut state, id) = large()?;
    let records = [announcement(id, 500, 2)?];
    let mut done = true;
    counted_window(&mut || {
        let Some((draft, news)) = state.take(id, &records) else {
            return done = false;
        };
        done &= news.len() == 1 && finish(&mut state, draft);
    });
    if done { Ok(()) } else { Err("refused".into()) }
}

fn copy() -> Result<(), Box<dyn Error>> {
    let (state, id) = large()?;
    counted_window(&mut || {
        black_box(state.subnets.get(&id).cloned());
    });
    Ok(())
}

/// Runs this program again under callgrind; the instructions one round of `step` took.
fn count(step: &Step) -> Result<u64, Box<dyn Error>> {
    let out = Command::new("valgrind")
        .args([
            "--tool=callgrind",
            "--collect-atstart=no",
            "--toggle-collect=*counted_window*",
        ])
        .args(["--callgrind-out-file=/dev/null", "--error-exitcode=0"])
        .arg(std::env::current_exe()?)
        .args(["--step", step.name])
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&out.stderr);
    let total = text
        .lines()
        .find_map(|line| line.split_once("Collected : "))
        .map(|(_, number)| number.trim().parse::<u64>());
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
        let result = STEPS
            .iter()
            .find(|step| step.name == name)
            .map(|step| (step.run)());
        return if matches!(result, Some(Ok(()))) {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        };
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
            Ok(taken) => (
                taken * 100 <= step.limit * (100 + SLACK),
                format!("{taken:>6}"),
            ),
            Err(error) => (false, error.to_string()),
        };
        (passed, failed) = if ok {
            (passed + 1, failed)
        } else {
            (passed, failed + 1)
        };
        let verdict = if ok { "ok" } else { "FAILED" };
        println!(
            "{:<9} {figure} of {:>6} instructions  {verdict:<6}  {}",
            step.name, step.limit, step.what
        );
    }
    println!("{passed} passed, {failed} failed, 0 skipped");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
