//! A subnet that falls into two halves, both of which go on, and heals.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::ci;
use crate::drive::{admit, apart, belief, together};
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, until};

pub const CASES: &[Case] = &[ci!(
    nine_hosts_apart_as_four_and_five_agree_thirty_seconds_after_they_meet
)];

/// A07: the owner in one half, an admin in the other; each lets nobody else's lease go twice.
fn nine_hosts_apart_as_four_and_five_agree_thirty_seconds_after_they_meet(lab: &Lab) -> Result<()> {
    let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
    let hosts = names
        .iter()
        .map(|n| lab.node(n))
        .collect::<Result<Vec<Rc<Host>>>>()?;
    hosts[0].json(&["create", "lab"])?;
    // The last one joins later, in the half without the owner.
    for (place, host) in hosts.iter().enumerate().skip(1).take(7) {
        admit(&hosts[0], host, if place == 4 { "admin" } else { "member" })?;
    }
    let known = |count: usize, among: &[Rc<Host>]| {
        until("everybody knows everybody", Duration::from_secs(30), || {
            for host in among {
                let members = host.members("lab")?;
                ensure!(members.len() == count, "{}: {members:?}", host.name());
            }
            Ok(true)
        })
    };
    known(8, &hosts[..8])?;
    let side = |range: std::ops::Range<usize>| -> Vec<&Host> {
        hosts[range].iter().map(Rc::as_ref).collect()
    };
    apart(lab, &side(0..4), &side(4..9))?;
    let other = hosts[5].overlay("lab")?.0;
    hosts[0].ns().loses(&other, Duration::from_secs(20))?;
    // Both halves work, and both edit.
    for half in [&hosts[..4], &hosts[4..8]] {
        let inside = half[1].overlay("lab")?.0;
        half[0].ns().reaches(&inside, SOON)?;
    }
    hosts[0].json(&["dns", "add", "lab", "here", "10.0.0.1"])?;
    hosts[4].json(&["dns", "add", "lab", "there", "10.0.0.2"])?;
    admit(&hosts[4], &hosts[8], "member")?;
    hosts[0].json(&["member", "label", "lab", "b", "half=one"])?;
    together(lab)?;
    let healed = Instant::now();
    known(9, &hosts)?;
    until("all believe the same", Duration::from_secs(30), || {
        let first = belief(&hosts[0])?;
        for host in &hosts {
            let other = belief(host)?;
            ensure!(other == first, "{}: {other:?}, not {first:?}", host.name());
        }
        let text = first.join("\n");
        ensure!(text.contains("here") && text.contains("there"), "{text}");
        Ok(true)
    })?;
    println!("  agreed after {:?}", healed.elapsed());
    for host in &hosts[1..] {
        host.ns().reaches(&hosts[0].overlay("lab")?.0, SOON)?;
    }
    Ok(())
}
