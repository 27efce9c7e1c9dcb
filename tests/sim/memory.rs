//! What a node keeps of each member that it knows, in bytes of this process: records, what follows from them, and the View.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use byway::model::record::Signed;
use byway::testing::{fill, identity_of};

use super::world::{World, draft};

/// What the design promises for one member, in bytes.
const MOST: usize = 8 * 1024;
/// Tells this program that it is the one that measures, with the file of the records to load.
const RECORDS: &str = "BYWAY_SIM_RECORDS";

/// Bytes of memory that the process has now.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.and_then(|kib| kib.parse::<usize>().ok()).unwrap() * 1024
}

/// Writes the records of so many members: of each a grant, an announcement, and a notice of two home relays.
fn write(members: u32, to: &Path) {
    let world = World::found(1, 1);
    let owner = world.nodes[0].me.key.clone();
    let mut subnet = world.nodes[0].subnets[&world.id].clone();
    fill(&mut subnet, &owner, members, world.now);
    let mut bytes = Vec::new();
    for record in subnet.records.all() {
        let record = record.encode();
        bytes.extend(u32::try_from(record.len()).unwrap().to_be_bytes());
        bytes.extend(record);
    }
    std::fs::write(to, bytes).unwrap();
}

/// Takes the records in one by one, as a node does that joins, builds a View of them, and prints what the process has then.
fn measure(from: &Path) {
    let world = World::found(1, 1);
    let mut state = world.nodes[0].clone();
    let mut subnet = state.subnets[&world.id].clone();
    let mut file = BufReader::new(File::open(from).unwrap());
    let mut length = [0; 4];
    while file.read_exact(&mut length).is_ok() {
        let mut bytes = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
        file.read_exact(&mut bytes).unwrap();
        let record = Signed::parse(&bytes).unwrap().check().unwrap();
        subnet.records.absorb(record);
    }
    state.absorb(draft(subnet));
    let held = resident();
    let began = Instant::now();
    let first = state.view(1, world.now + 1, &Default::default(), &Default::default());
    let whole = began.elapsed();
    let seen = resident();
    // As the node does when it publishes: what the View before has in common with the next is shared.
    let resolved = first.built.iter();
    state.keep(
        resolved.map(|(id, built)| (*id, built.resolved().clone())),
        world.now + 1,
    );
    // One more announcement.
    let mut subnet = state.subnets[&world.id].clone();
    let endpoints = ["/ip4/198.51.100.7/tcp/4100".to_owned()];
    let me = identity_of(7);
    subnet
        .set_endpoints(&me, &endpoints, world.now + 2)
        .unwrap();
    state.absorb(draft(subnet));
    let began = Instant::now();
    let second = state.view(2, world.now + 2, &Default::default(), &first);
    let next = began.elapsed();
    drop(first);
    println!(
        "bytes {} of {} members, {held} before there was a View, {seen} with the first; it took {whole:?}, the next one {next:?}",
        resident(),
        second.members().len()
    );
}

#[test]
fn a_known_member_costs_at_most_eight_kilobytes() {
    if let Ok(records) = std::env::var(RECORDS) {
        return measure(Path::new(&records));
    }
    // Alone in a process each, because others of these tests take memory meanwhile.
    let dir = tempfile::tempdir().unwrap();
    let taken = [1000, 2000].map(|members| {
        let records = dir.path().join(members.to_string());
        write(members, &records);
        let name = "memory::a_known_member_costs_at_most_eight_kilobytes";
        let ran = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(RECORDS, &records)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&ran.stdout).into_owned();
        let line = text.lines().find(|line| line.starts_with("bytes "));
        let line = line.ok_or(&text).unwrap();
        println!("{line}");
        assert!(line.contains(&format!("of {members} members")), "{line}");
        line.split(' ').nth(1).unwrap().parse::<usize>().unwrap()
    });
    let each = taken[1].saturating_sub(taken[0]) / 1000;
    println!("{each} bytes for each further member");
    assert!((500..=MOST).contains(&each), "{each} bytes");
}
