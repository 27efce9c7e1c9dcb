//! A member that abuses knocks: it wants others to send where it points, and lies about what it heard.

use anyhow::{Context, Result, ensure};
use byway::model::id::PeerId;

use crate::drive::{evil, peer, places, subnet};
use crate::evil::{hand, peer::peer_of};
use crate::fast;
use crate::lab::runner::Case;
use crate::lab::{Host, Lab, SOON, text, until};
use crate::underlay::{FIVE, datagrams};

pub const CASES: &[Case] = &[fast!(
    a_member_that_abuses_knocks_aims_not_one_datagram_at_anybody_else
)];

/// A key whose ID is smaller than `than`: who has it begins the session.
fn smaller(than: &str) -> Result<String> {
    let than: PeerId = than.parse()?;
    let mut words = (0..1000).map(|n| format!("word:knocker-{n}"));
    let is_smaller = |word: &String| hand::key(word).is_ok_and(|key| peer_of(&key) < than);
    words.find(is_smaller).context("a smaller ID")
}

/// A counter of `metrics`, with its labels as they are written there.
fn metric(of: &Host, name: &str) -> Result<u64> {
    let text = of.ok(&["metrics"])?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let line = line.with_context(|| format!("no {name} in {text}"))?;
    Ok(line.trim().parse()?)
}

/// What the malicious peer counted under a name.
fn said(told: &str, name: &str) -> u64 {
    let mut words = told.split_whitespace();
    words
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
        .unwrap_or(0)
}

/// Counts the UDP datagrams of the daemons' port that the switch brings to a host.
struct Arrivals<'a>(&'a Lab);

impl Arrivals<'_> {
    fn start<'a>(lab: &'a Lab, at: &Host) -> Result<Arrivals<'a>> {
        let (v4, v6) = (at.under4(), at.under6());
        lab.rules(&format!(
            "table bridge arrivals {{\n chain f {{\n  type filter hook forward priority 0; policy accept;\n  \
             ip daddr {v4} meta l4proto udp counter\n  ip6 daddr {v6} meta l4proto udp counter\n }}\n}}\n"
        ))?;
        Ok(Arrivals(lab))
    }

    fn count(&self) -> Result<u64> {
        let list = ["nft", "list", "table", "bridge", "arrivals"];
        let text = self.0.switch().ok(&list)?;
        let words: Vec<&str> = text.split_whitespace().collect();
        let counts = words.windows(3).filter_map(|w| match w {
            ["counter", "packets", n] => n.parse::<u64>().ok(),
            _ => None,
        });
        Ok(counts.sum())
    }
}

fn a_member_that_abuses_knocks_aims_not_one_datagram_at_anybody_else(lab: &Lab) -> Result<()> {
    let hosts = lab.subnet(&["a", "b"])?;
    let (a, b) = (&hosts[0], &hosts[1]);
    let (x, v) = (lab.host("x")?, lab.host("v")?);
    datagrams(a, b, FIVE)?;
    let victim = peer(b)?;
    let word = smaller(&victim)?;
    let invite = text(&a.json(&["invite", "create", "lab"])?, "invite")?;
    evil(
        x.ns(),
        &["join", &invite, "--to", &places(&[a]), "--key", &word],
    )?;
    until("the other one knows it", SOON, || {
        Ok(b.members("lab")?.iter().any(|name| name == "mallory"))
    })?;
    let arrivals = Arrivals::start(lab, &v)?;
    let (inside, port) = (b.overlay("lab")?.0, |host: &str| format!("{host}:4100"));
    let at = [
        format!("{}:7000", v.under4()),
        format!("{}:53", v.under4()),
        format!("[{}]:7000", v.under6()),
        port(b.under4()),
        port(a.under4()),
        port(&inside),
        "224.0.0.251:5353".to_owned(),
        "127.0.0.1:4100".to_owned(),
    ];
    let (at, listen) = (at.join(","), port(x.under4()));
    let echoes = a.ns().probe(&inside, 250, 20)?;
    let (id, to) = (subnet(b)?, places(&[b]));
    let told = evil(
        x.ns(),
        &[
            "knock-storm",
            &victim,
            "--to",
            &to,
            "--subnet",
            &id,
            "--key",
            &word,
            "--listen",
            &listen,
            "--at",
            &at,
            "--for",
            "6",
        ],
    )?;
    let answered = echoes.answered()?;
    // It was heard, and told each time why nothing is sent.
    ensure!(said(&told, "said") > 2000, "{told}");
    ensure!(
        said(&told, "elsewhere") > 100 && said(&told, "too-often") > 20,
        "{told}"
    );
    // Not one to others; to itself one a minute, and what the test of `b` itself shows a witness.
    ensure!(arrivals.count()? == 0, "{} came", arrivals.count()?);
    ensure!(said(&told, "sent") <= 1, "{told}");
    ensure!(
        said(&told, "knocks") <= said(&told, "sent") + said(&told, "expect"),
        "{told}"
    );
    // And counted.
    let refused = |why: &str| {
        metric(
            b,
            &format!("byway_knocks_refused_total{{reason=\"{why}\"}}"),
        )
    };
    let (sent, stray) = (
        metric(b, "byway_knocks_total")?,
        metric(b, "byway_knocks_stray_total")?,
    );
    let (elsewhere, often) = (refused("not-the-asker")?, refused("too-often")?);
    println!("  sent {sent}, refused {elsewhere} and {often}, stray {stray}");
    ensure!(sent <= 3, "{sent} sent");
    ensure!(elsewhere >= said(&told, "elsewhere"), "{elsewhere} counted");
    ensure!(
        often >= said(&told, "too-often") && stray > 100,
        "{often} and {stray}"
    );
    // Nobody else has lost anything by it.
    ensure!(answered >= 248, "{answered} of 250 echoes beside it");
    datagrams(a, b, FIVE)
}
