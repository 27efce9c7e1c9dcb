//! The fuzz targets of `tests/fuzz` run over their seeds and what lies near them. cargo-fuzz runs them for hours, where somebody
//! starts it; what no longer compiles, or holds no longer, shows here at once.

#![expect(
    unused_attributes,
    reason = "cargo-fuzz builds each of them as a program without a `main`"
)]

use super::Dice;

#[path = "../../tests/fuzz/targets/api.rs"]
mod api;
#[path = "../../tests/fuzz/targets/ask.rs"]
mod ask;
#[path = "../../tests/fuzz/targets/config.rs"]
mod config;
#[path = "../../tests/fuzz/targets/control.rs"]
mod control;
#[path = "../../tests/fuzz/targets/datagram.rs"]
mod datagram;
#[path = "../../tests/fuzz/targets/dns.rs"]
mod dns;
#[path = "../../tests/fuzz/targets/frame.rs"]
mod frame;
#[path = "../../tests/fuzz/targets/heard.rs"]
mod heard;
#[path = "../../tests/fuzz/targets/invite.rs"]
mod invite;
#[path = "../../tests/fuzz/targets/item.rs"]
mod item;
#[path = "../../tests/fuzz/targets/lan.rs"]
mod lan;
#[path = "../../tests/fuzz/targets/mss.rs"]
mod mss;
#[path = "../../tests/fuzz/targets/nft.rs"]
mod nft;
#[path = "../../tests/fuzz/targets/packet.rs"]
mod packet;
#[path = "../../tests/fuzz/targets/paths.rs"]
mod paths;
#[path = "../../tests/fuzz/targets/record.rs"]
mod record;
#[path = "../../tests/fuzz/targets/relay.rs"]
mod relay;
#[path = "../../tests/fuzz/targets/replay.rs"]
mod replay;
#[path = "../../tests/fuzz/targets/roll.rs"]
mod roll;
#[path = "../../tests/fuzz/targets/segment.rs"]
mod segment;
#[path = "../../tests/fuzz/targets/service.rs"]
mod service;
#[path = "../../tests/fuzz/targets/session.rs"]
mod session;
#[path = "../../tests/fuzz/targets/store.rs"]
mod store;
#[path = "../../tests/fuzz/targets/stun.rs"]
mod stun;
#[path = "../../tests/fuzz/targets/upnp.rs"]
mod upnp;
#[path = "../../tests/fuzz/targets/web.rs"]
mod web;

/// What libfuzzer's macro of that name makes a target of. It stands behind the targets, which import it.
macro_rules! fuzz_target {
    (|$data:ident: &[u8]| $body:expr) => {
        pub(super) fn run($data: &[u8]) {
            $body
        }
    };
}
pub(crate) use fuzz_target;

/// Inputs near a seed that each target gets.
const NEAR: usize = 40;

/// A target by its name.
type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 26] = [
    ("api", api::run),
    ("ask", ask::run),
    ("config", config::run),
    ("control", control::run),
    ("datagram", datagram::run),
    ("dns", dns::run),
    ("frame", frame::run),
    ("heard", heard::run),
    ("invite", invite::run),
    ("item", item::run),
    ("lan", lan::run),
    ("mss", mss::run),
    ("nft", nft::run),
    ("packet", packet::run),
    ("paths", paths::run),
    ("record", record::run),
    ("relay", relay::run),
    ("replay", replay::run),
    ("roll", roll::run),
    ("segment", segment::run),
    ("service", service::run),
    ("session", session::run),
    ("store", store::run),
    ("stun", stun::run),
    ("upnp", upnp::run),
    ("web", web::run),
];

/// The directory of the fuzzer.
fn place(below: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz")
        .join(below)
}

fn names(below: &str) -> Vec<String> {
    let files = std::fs::read_dir(place(below)).into_iter().flatten();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// The same with some bytes changed, cut off or repeated.
fn near(seed: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=dice.below(4) {
        let at = dice.index(bytes.len());
        match dice.below(4) {
            0 => bytes.truncate(at),
            1 => bytes.extend_from_within(at..),
            _ => {
                let new = dice.bytes(1);
                bytes.splice(at..bytes.len().min(at + 1), new);
            }
        }
    }
    bytes.truncate(8192);
    bytes
}

#[test]
fn every_target_holds_on_its_seeds_and_near_them() {
    let mut dice = Dice::new(1);
    for (name, run) in TARGETS {
        let below = format!("seeds/{name}");
        let mut seeds = vec![Vec::new(), dice.bytes(64), dice.bytes(1400)];
        for seed in names(&below) {
            seeds.push(std::fs::read(place(&below).join(seed)).unwrap());
        }
        for seed in seeds {
            run(&seed);
            for _ in 0..NEAR {
                run(&near(&seed, &mut dice));
            }
        }
    }
}

#[test]
fn every_target_is_run_here_and_known_to_the_fuzzer() {
    let listed: Vec<String> = TARGETS
        .iter()
        .map(|(name, _)| format!("{name}.rs"))
        .collect();
    assert_eq!(listed, names("targets"));
    let manifest = std::fs::read_to_string(place("Cargo.toml")).unwrap();
    for (name, _) in TARGETS {
        assert!(
            manifest.contains(&format!("path = \"targets/{name}.rs\"")),
            "{name}"
        );
    }
    // Seeds that no target reads help nobody.
    let is_target = |seeds: &String| TARGETS.iter().any(|(name, _)| name == seeds);
    assert!(names("seeds").iter().all(is_target));
}
