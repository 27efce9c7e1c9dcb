//! The steps of a change of a subnet of 1,000 members with 50 workloads each.

use std::error::Error;
use std::hint::black_box;
use std::net::IpAddr;

use super::counted_window;
use crate::model::host::{NetnsRef, Proto, ResolvConf};
use crate::model::id::SubnetId;
use crate::model::local::Map;
use crate::model::members::{Identity, Subnet};
use crate::model::record::{
    Announcement, Body, Grant, Role, Signed, Term, Verified, WorkloadEntry,
};
use crate::model::state::{Draft, Founding, State};
use crate::model::subnet::Absorbed;
use crate::model::upkeep::Attendance;
use crate::model::workload::{Target, Workload};
use crate::testing::founding;

const NOW: u64 = 1_800_000_000;

fn name(text: &str) -> Result<crate::model::id::Name, Box<dyn Error>> {
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
        cidr4: Some(Some("10.0.0.0/8".parse()?)),
        cidr6: None,
        block4: Some(24),
        salt: [7; 16],
        ..founding(name("lab")?, name("m0")?)
    };
    let failed = |error: crate::model::error::Error| error.message;
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
    decide: impl Fn(&mut Subnet, &Identity) -> Result<(), crate::model::error::Error>,
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

pub fn dns_add() -> Result<(), Box<dyn Error>> {
    let text = [crate::model::zone::RecordData::Txt("x".into())];
    decided(|subnet, me| subnet.dns_add(me, "more", &text, 60, NOW))
}

pub fn attach() -> Result<(), Box<dyn Error>> {
    let more = workload(50)?;
    decided(|subnet, me| subnet.attach(me, more.clone(), None, NOW).map(drop))
}

pub fn map_add() -> Result<(), Box<dyn Error>> {
    let map = Map {
        name: name("more")?,
        proto: Proto::Tcp,
        listen: IpAddr::from([192, 0, 2, 1]),
        ports: "80".parse()?,
        target: "own-7".to_owned(),
        target_port: 80,
        allow: vec![],
    };
    decided(|subnet, me| subnet.map_add(me, map.clone(), &[], NOW))
}

pub fn pushed() -> Result<(), Box<dyn Error>> {
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

pub fn copy() -> Result<(), Box<dyn Error>> {
    let (state, id) = large()?;
    counted_window(&mut || {
        black_box(state.subnets.get(&id).cloned());
    });
    Ok(())
}
