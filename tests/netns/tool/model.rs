//! What a large subnet costs: a View and its memory, a lookup among many prefixes, and what each message takes of the
//! node's thread.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use byway::model::build::Here;
use byway::model::id::{Name, PeerId};
use byway::model::join::Ask;
use byway::model::members::{Identity, Subnet};
use byway::model::record::{Announcement, Body, Role, Signed, Term, WorkloadEntry};
use byway::model::routes::{Owner, RouteTable};
use byway::model::state::{Draft, Founding, State};
use byway::model::subnet::Absorbed;
use byway::model::view::View;
use byway::testing::{Dice, founding};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Words;

/// `model [members=] [workloads=] [prefixes=]`: JSON on standard output.
///
/// # Errors
/// The model refuses a record of the subnet made here.
pub fn run(words: &Words) -> Result<()> {
    let (members, workloads) = (
        words.or("members", 1000_usize)?,
        words.or("workloads", 50_usize)?,
    );
    let prefixes = words.or("prefixes", 100_000_usize)?;
    let now = byway::node::unix_now();
    let state = state(members, workloads, now)?;
    // In this order: what the whole ones free would hide what the others keep.
    let (next_ms, next_kb) = next_view(&state, workloads, now)?;
    let (view_ms, view_kb) = view(&state, now)?;
    let lookup_ns = lookup(prefixes)?;
    let node: Vec<String> = super::node::run(state)?
        .into_iter()
        .map(|(what, ms)| format!(",\"{what}\":{ms:.3}"))
        .collect();
    println!(
        "{{\"members\":{members},\"workloads\":{workloads},\"view_ms\":{view_ms:.2},\"view_kb\":{view_kb},\
         \"next_view_ms\":{next_ms:.3},\"next_view_kb\":{next_kb},\
         \"prefixes\":{prefixes},\"lookup_ns\":{lookup_ns:.1}{}}}",
        node.concat()
    );
    Ok(())
}

pub(super) fn name(text: &str) -> Result<Name> {
    text.parse()
        .map_err(|e| anyhow::anyhow!("name {text}: {e}"))
}

pub(super) fn identity(n: usize) -> Identity {
    let mut seed = [1; 32];
    seed[..8].copy_from_slice(&n.to_le_bytes());
    Identity::new(&seed, seed, seed.map(|byte| !byte))
}

/// The founder's state: that many members, each with that many workloads.
fn state(members: usize, workloads: usize, now: u64) -> Result<State> {
    let mut state = State::new(identity(0));
    let me = state.me.clone();
    let founding = Founding {
        cidr4: Some(Some("10.0.0.0/8".parse()?)),
        block4: Some(24),
        salt: [7; 16],
        ..founding(name("lab")?, name("m0")?)
    };
    let mut subnet = state.found(founding, now)?;
    for n in 1..members {
        admit(&mut subnet, &me, n, now)?;
    }
    let resolved = subnet.records.resolve(now);
    for n in 0..members {
        let who = identity(n);
        let member = resolved
            .members
            .get(&who.peer)
            .context("a member that was admitted")?;
        let entries = (0..workloads).map(|w| {
            let addresses = member
                .leases
                .iter()
                .filter_map(|l| inside(*l, w as u32 + 10))
                .collect();
            Ok(WorkloadEntry {
                name: name(&format!("w{w}-{n}"))?,
                addresses,
            })
        });
        let workloads = entries.collect::<Result<_>>()?;
        let announcement = Announcement {
            version: 1,
            issued: now,
            workloads,
            ..Announcement::default()
        };
        let signed = Signed::new(
            subnet.records.id,
            &Body::Announcement(announcement),
            &who.key,
        );
        ensure!(
            matches!(subnet.records.absorb(signed.check()?), Absorbed::New),
            "an announcement was refused"
        );
    }
    let mut draft = Draft::default();
    draft.put(subnet);
    state.absorb(draft);
    Ok(state)
}

fn admit(subnet: &mut Subnet, me: &Identity, n: usize, now: u64) -> Result<()> {
    let who = identity(n);
    let ask = Ask {
        subnet: subnet.records.id,
        joiner: who.peer,
        data_key: who.data_key,
        seal_key: who.seal_key,
        name: name(&format!("m{n}"))?,
        name_is_default: false,
        ip: None,
        asked: now,
        proof: None,
    };
    subnet.admit(me, &ask, (Role::Member, Term::Full), &BTreeMap::new(), now)?;
    Ok(())
}

/// The `n`-th address of a prefix.
fn inside(prefix: IpNet, n: u32) -> Option<IpAddr> {
    match prefix {
        IpNet::V4(p) => Some(Ipv4Addr::from_bits(p.network().to_bits().checked_add(n)?).into()),
        IpNet::V6(p) => {
            Some(Ipv6Addr::from_bits(p.network().to_bits().checked_add(u128::from(n))?).into())
        }
    }
}

/// Milliseconds to make one (median of nine), and kB of memory each of them keeps.
fn view(state: &State, now: u64) -> Result<(f64, i64)> {
    const ROUNDS: usize = 9;
    let here = Here::default();
    let (mut times, mut kept) = (Vec::new(), Vec::new());
    // The first one warms the allocator; its memory counts for no one.
    kept.push(state.view(0, now, &here, &View::default()));
    let before = rss_kb()?;
    for generation in 1..=ROUNDS as u64 {
        let start = Instant::now();
        kept.push(black_box(state.view(
            generation,
            now,
            &here,
            &View::default(),
        )));
        times.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    let each = (rss_kb()? - before) / ROUNDS as i64;
    times.sort_by(f64::total_cmp);
    ensure!(
        kept.iter().all(|v| v.subnets.len() == 1),
        "a view without its subnet"
    );
    Ok((*times.get(ROUNDS / 2).context("a median")?, each))
}

/// Milliseconds to make the one after a member gave a workload another name (median of 99), and kB that each keeps beside
/// the former ones.
fn next_view(state: &State, workloads: usize, now: u64) -> Result<(f64, i64)> {
    const ROUNDS: usize = 99;
    let (here, mut state, mut times) = (Here::default(), state.clone(), Vec::new());
    let id = *state.subnets.keys().next().context("a subnet")?;
    state.remember(now);
    let mut kept = vec![state.view(1, now, &here, &View::default())];
    let before = rss_kb()?;
    for round in 0..ROUNDS.min(
        state.subnets[&id]
            .records
            .announcements()
            .count()
            .saturating_sub(1),
    ) {
        let who = identity(round + 1);
        let mut subnet = state.subnets[&id].clone();
        let mut announcement = subnet
            .records
            .announcement(who.peer)
            .cloned()
            .context("its announcement")?;
        announcement.version += 1;
        announcement
            .workloads
            .get_mut(workloads / 2)
            .context("a workload")?
            .name = name(&format!("next-{round}"))?;
        let signed = Signed::new(id, &Body::Announcement(announcement), &who.key).check()?;
        let start = Instant::now();
        ensure!(
            matches!(subnet.records.absorb(signed), Absorbed::New),
            "an announcement was refused"
        );
        let mut draft = Draft::default();
        draft.put(subnet);
        let _ = state.absorb(draft);
        state.remember(now);
        let view = state.view(
            round as u64 + 2,
            now,
            &here,
            kept.last().context("the view before")?,
        );
        times.push(start.elapsed().as_secs_f64() * 1000.0);
        kept.push(view);
    }
    let each = (rss_kb()? - before) / times.len().max(1) as i64;
    times.sort_by(f64::total_cmp);
    Ok((*times.get(times.len() / 2).context("a median")?, each))
}

fn rss_kb() -> Result<i64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix("RssAnon:"))
        .context("RssAnon")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

/// Nanoseconds of one lookup, three quarters of them version 4, most of them hits.
fn lookup(prefixes: usize) -> Result<f64> {
    const LOOKUPS: usize = 2_000_000;
    let mut dice = Dice::new(3);
    let (mut held, mut addresses) = (BTreeMap::new(), Vec::with_capacity(prefixes));
    while held.len() < prefixes {
        let random = dice.roll();
        let (prefix, address): (IpNet, IpAddr) = if random & 3 == 0 {
            let address = Ipv6Addr::from_bits(
                0xfd << 120 | u128::from(dice.roll()) << 48 | u128::from(dice.roll() >> 16),
            );
            (
                Ipv6Net::new(address, 48 + (random >> 8) as u8 % 81)?
                    .trunc()
                    .into(),
                address.into(),
            )
        } else {
            let address = Ipv4Addr::from_bits(10 << 24 | random as u32 >> 8);
            (
                Ipv4Net::new(address, 20 + (random >> 40) as u8 % 13)?
                    .trunc()
                    .into(),
                address.into(),
            )
        };
        if held
            .insert(prefix, Owner::Member(PeerId([random as u8; 32])))
            .is_none()
        {
            addresses.push(address);
        }
    }
    let table: RouteTable = held.into_iter().collect();
    let start = Instant::now();
    let mut found = 0_usize;
    for n in 0..LOOKUPS {
        // A large odd step: consecutive lookups share no memory.
        let at = n.wrapping_mul(7919 * 13 + 2) % addresses.len();
        found += usize::from(table.lookup(black_box(addresses[at])).is_some());
    }
    let each = start.elapsed().as_secs_f64() * 1e9 / LOOKUPS as f64;
    ensure!(found == LOOKUPS, "a prefix was lost");
    Ok(each)
}
