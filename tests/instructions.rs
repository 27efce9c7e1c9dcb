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
#[path = "../src/codec.rs"]
mod codec;
#[path = "../src/model/mod.rs"]
mod model;
#[path = "../src/packet/mod.rs"]
mod packet;
#[path = "../src/text.rs"]
mod text;
// By path like the rest: with the library linked, generic code of its development build would be counted.
#[cfg(test)]
#[path = "../src/testing"]
mod testing {
    mod dice;
    mod founding;
    pub use dice::Dice;
    pub use founding::founding;
}
#[path = "../src/tun/linux/virtio.rs"]
mod virtio;
#[path = "../src/wire"]
mod wire {
    pub mod address;
    pub mod datagram;
}

#[path = "instructions/changes.rs"]
mod changes;
#[path = "instructions/packets.rs"]
mod packets;

use std::error::Error;
use std::hint::black_box;
use std::process::{Command, ExitCode, Stdio};

/// How often a step runs inside the window that is counted.
const ROUNDS: u64 = 1000;
/// Beyond its limit by this many percent a step fails.
const SLACK: u64 = 10;

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
        run: packets::parse_v4,
    },
    Step {
        name: "parse-v6",
        limit: 261,
        what: "one UDP packet over IPv6",
        run: packets::parse_v6,
    },
    Step {
        name: "route",
        limit: 223,
        what: "source and destination among 10,000 prefixes",
        run: packets::route,
    },
    Step {
        name: "admit",
        limit: 751,
        what: "the same from a peer, one of 200 members",
        run: packets::admit,
    },
    Step {
        name: "mss",
        limit: 178,
        what: "a SYN, its checksum mended",
        run: packets::clamp,
    },
    Step {
        name: "cut",
        limit: 1138,
        what: "60 KB in 44 pieces: plan, ranges, trailers",
        run: packets::cut,
    },
    Step {
        name: "join",
        limit: 6936,
        what: "the same opened in place: trailers, one packet, its virtio header",
        run: packets::join,
    },
    Step {
        name: "bundle",
        limit: 889,
        what: "16 small packets put in",
        run: packets::bundle,
    },
    Step {
        name: "unbundle",
        limit: 804,
        what: "16 small packets taken out",
        run: packets::unbundle,
    },
    Step {
        name: "dns-add",
        limit: 889_647,
        what: "a name decided, written for the disk and made true; 1,000 members with 50 workloads",
        run: changes::dns_add,
    },
    Step {
        name: "attach",
        limit: 1_074_756,
        what: "a workload there",
        run: changes::attach,
    },
    Step {
        name: "map-add",
        limit: 291_447,
        what: "a port map there",
        run: changes::map_add,
    },
    Step {
        name: "pushed",
        limit: 112_587,
        what: "a checked document of a member there",
        run: changes::pushed,
    },
    Step {
        name: "copy",
        limit: 1005,
        what: "a copy of that subnet, taken and dropped",
        run: changes::copy,
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
