//! A real daemon that knows many members: what each costs it, and how soon somebody who joins among them is reached.
//!
//! Only one or two of the members run. The others are records, signed by the keys of the subnet and written into the store of
//! the founder's daemon while it stands still; nobody answers at their addresses.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use byway::model::draft::record_key;
use byway::model::members::Identity;
use byway::model::record::{Digest, Verified};
use byway::model::state::State;
use byway::store::{self, Batch, Store};
use byway::testing::fill;

use crate::drive::resident;
use crate::lab::crowd::{Spread, slowly};
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, text};
use crate::long;

pub const CASES: &[Case] = &[
    long!(a_daemon_takes_eight_kilobytes_at_most_for_each_member_it_knows),
    long!(who_joins_two_hundred_members_reaches_the_founder_in_three_seconds),
];

/// What a daemon may take for each member that it knows, in bytes.
const EACH: u64 = 8 * 1024;
/// How long a daemon has to load, to dial in vain whom it would hold, and to give back what it no longer uses.
const SETTLED: Duration = Duration::from_secs(60);
/// How often memory is looked at, and how long after one look the next is.
const LOOKS: u32 = 30;
const BETWEEN: Duration = Duration::from_secs(3);
/// The longest time from the start of `join` to the answer to the first packet.
const REACHED: Duration = Duration::from_secs(3);

/// The founder of a subnet `lab`, which knows so many further members since its last start.
fn founder(lab: &Lab, name: &str, members: u32) -> Result<Rc<Host>> {
    let host = lab.node(name)?;
    host.json(&["create", "lab"])?;
    host.terminate()?;
    enrol(&host, members)?;
    host.start()?;
    slowly("it knows all", Duration::from_secs(60), || {
        Ok(host.members("lab")?.len() == usize::try_from(members)? + 1)
    })?;
    Ok(host)
}

/// Writes the records of that many members into the store of a founder that does not run.
fn enrol(host: &Host, members: u32) -> Result<()> {
    let dir = host.state();
    let seed = store::identity(&dir, None, true)?;
    let store = Store::open(&dir)?;
    let me = Identity::new(&seed, [0; 32], [0; 32]);
    let (state, damage) = State::load(me, store.load()?.records);
    ensure!(damage.is_empty(), "{damage:?}");
    let (id, subnet) = state.subnets.iter().next().context("a subnet")?;
    let before: BTreeSet<Digest> = subnet.records.verified().map(|r| r.digest()).collect();
    let mut subnet = subnet.clone();
    fill(&mut subnet, &state.me.key, members, byway::node::unix_now());
    let new = subnet.records.verified();
    let new = new.filter(|record| !before.contains(&record.digest()));
    let row = |record: Verified| {
        let key = record_key(*id, &record.digest());
        (key, record.signed().encode())
    };
    let batch = Batch {
        put_records: new.map(row).collect(),
        ..Batch::default()
    };
    store.commit(&batch)?;
    Ok(())
}

/// The anonymous memory of two daemons that differ in nothing but how many members they know.
fn a_daemon_takes_eight_kilobytes_at_most_for_each_member_it_knows(lab: &Lab) -> Result<()> {
    let few = founder(lab, "few", 10)?;
    let many = founder(lab, "many", 1010)?;
    std::thread::sleep(SETTLED);
    // What the kernel is asked for each half minute is given back within a minute: the least of one counts.
    let (mut least_few, mut least_many) = (u64::MAX, u64::MAX);
    for _ in 0..LOOKS {
        std::thread::sleep(BETWEEN);
        least_few = least_few.min(resident(&few)?);
        least_many = least_many.min(resident(&many)?);
    }
    let (few, many) = (least_few, least_many);
    let each = many.saturating_sub(few) * 1024 / 1000;
    println!("  {few} KiB with 10 members, {many} KiB with 1,010: {each} bytes each");
    ensure!(each <= EACH, "{each} bytes for each member");
    ensure!(each >= 500, "{each} bytes: they are not known");
    Ok(())
}

/// Over the real UDP of a switch. What the joiner is given, checks, saves and follows is that of 201 members; those that it
/// would hold beside the founder do not answer.
fn who_joins_two_hundred_members_reaches_the_founder_in_three_seconds(lab: &Lab) -> Result<()> {
    let first = founder(lab, "a", 200)?;
    let to = first.overlay("lab")?.0;
    let mut took = Vec::new();
    for name in ["b", "c", "d"] {
        let invite = text(&first.json(&["invite", "create", "lab"])?, "invite")?;
        let joiner = lab.node(name)?;
        let begun = Instant::now();
        joiner.ok(&["join", &invite])?;
        let joined = begun.elapsed();
        joiner.ns().reaches(&to, REACHED)?;
        let reached = begun.elapsed();
        println!("  joined after {joined:?}, the first answer after {reached:?}");
        ensure!(reached <= REACHED, "{reached:?} to the first answer");
        // The answer to a join brings as many records as fit; a comparison brings the others.
        slowly("it knows all", SOON, || {
            Ok(joiner.members("lab")?.len() > 200)
        })?;
        took.push(u64::try_from(reached.as_millis())?);
    }
    println!("  ms from join to the first answer: {}", Spread::of(&took));
    Ok(())
}
