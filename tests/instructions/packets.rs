//! The steps of a packet.

use std::collections::BTreeSet;
use std::error::Error;
use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;

use super::counted_window;
use crate::model::id::{PeerId, SubnetId};
use crate::model::routes::Owner;
use crate::model::view::SubnetView;
use crate::model::zone::Zone;
use crate::packet::offload::{Kind, Offload, Rebuild};
use crate::packet::reassemble::{Segment, reassemble};
use crate::packet::segment_plan::SegmentPlan;
use crate::packet::{mss, parse};
use crate::virtio;
use crate::wire::datagram::{Bundle, OVERHEAD, TRAILER, Trailer, append, split};

/// Payload of a path of 1500 bytes over IPv4.
const PATH: usize = 1472;

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

pub fn parse_v4() -> Result<(), Box<dyn Error>> {
    let bytes = tcp(0x10, [1; 12], 1300)?;
    counted_window(&mut || {
        let _ = black_box(parse(black_box(&bytes)));
    });
    Ok(())
}

pub fn parse_v6() -> Result<(), Box<dyn Error>> {
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
    let name: crate::model::id::Name = "lab".parse()?;
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

pub fn route() -> Result<(), Box<dyn Error>> {
    let (view, peer) = subnet()?;
    let (ours, theirs) = (address("10.0.3.7")?, address("10.0.200.9")?);
    if view.route(ours, theirs) != Ok(crate::model::view::Hop::Peer(peer)) {
        return Err("routed elsewhere".into());
    }
    counted_window(&mut || {
        let _ = black_box(black_box(&view).route(black_box(ours), black_box(theirs)));
    });
    Ok(())
}

pub fn admit() -> Result<(), Box<dyn Error>> {
    let (view, peer) = subnet()?;
    let (ours, theirs) = (address("10.0.3.7")?, address("10.0.200.9")?);
    view.admit(peer, theirs, ours)?;
    counted_window(&mut || {
        let _ = black_box(black_box(&view).admit(peer, black_box(theirs), black_box(ours)));
    });
    Ok(())
}

pub fn clamp() -> Result<(), Box<dyn Error>> {
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

pub fn cut() -> Result<(), Box<dyn Error>> {
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

pub fn join() -> Result<(), Box<dyn Error>> {
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

pub fn bundle() -> Result<(), Box<dyn Error>> {
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

pub fn unbundle() -> Result<(), Box<dyn Error>> {
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
