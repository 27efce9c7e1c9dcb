//! What one message costs the node's thread at a large subnet: a piece of announcements judged, and saved; a
//! comparison; the records that a question about differences is answered from; a stranger's question.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use byway::api::types::Error;
use byway::model::build::Here;
use byway::model::id::{PeerId, SubnetId};
use byway::model::join::{Ask, SignedAsk};
use byway::model::members::Identity;
use byway::model::record::{Body, Signed, Verified};
use byway::model::source::Payer;
use byway::model::state::State;
use byway::model::zone::RecordData;
use byway::node::{Core, Lane, Node, PIECE, Parts};
use byway::store::Store;
use byway::wire::control::JoinRequest;

use super::model::{identity, name};

const ROUNDS: usize = 15;
/// What is measured, in the order in which a round does it.
const WHAT: [&str; 9] = [
    "receive_ms",
    "save_ms",
    "saved_ms",
    "document_ms",
    "dns_add_ms",
    "upkeep_ms",
    "compare_ms",
    "pull_ms",
    "ask_ms",
];

/// Milliseconds of the node's thread (median of 15) by what they are for.
///
/// # Errors
/// The node refuses what is measured.
pub fn run(state: State) -> Result<Vec<(&'static str, f64)>> {
    let dir = tempfile::TempDir::new()?;
    let (id, subnet) = state.subnets.iter().next().context("a subnet")?;
    let id = *id;
    let all = subnet.records.all().filter(|r| r.body.first() == Some(&2));
    // This node says itself what it is.
    let mut announcements: Vec<Signed> =
        all.filter(|r| r.issuer != state.me.peer).cloned().collect();
    let keys: BTreeMap<PeerId, Identity> = (0..=announcements.len())
        .map(identity)
        .map(|who| (who.peer, who))
        .collect();
    let few = announcements.split_off(announcements.len().saturating_sub(ROUNDS));
    let parts = Parts {
        store: Store::open(dir.path())?,
        state,
        damage: vec![],
        here: Here::default(),
        node_name: name("m0")?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async move {
        let (node, _pushes) = Node::start(parts)?;
        // What this node has to say of itself, and the names it has to register, is said once before.
        look(&node).await?;
        look(&node).await?;
        let mut rounds = Vec::with_capacity(ROUNDS);
        for round in 0..ROUNDS {
            rounds.push(measured(&node, id, (&announcements[..], &few[..]), &keys, round).await?);
        }
        node.close().await;
        let median = |n: usize| -> Result<f64> {
            let mut times: Vec<f64> = rounds.iter().filter_map(|r| r.get(n).copied()).collect();
            times.sort_by(f64::total_cmp);
            times.get(ROUNDS / 2).copied().context("a median")
        };
        let named = WHAT.iter().enumerate();
        named.map(|(n, what)| Ok((*what, median(n)?))).collect()
    })
}

/// Milliseconds of each of [`WHAT`] in one round; of the documents, `few` are those that change by one.
async fn measured(
    node: &Node,
    id: SubnetId,
    (docs, few): (&[Signed], &[Signed]),
    keys: &BTreeMap<PeerId, Identity>,
    round: usize,
) -> Result<[f64; WHAT.len()]> {
    let peer = identity(1).peer;
    let piece = newer(docs, keys, 2 * round)?;
    let other = newer(docs, keys, 2 * round + 1)?;
    let (receive, news) = time(node, move |core| core.receive(id, piece, Some(peer)).news).await?;
    ensure!(news == PIECE, "{news} of {PIECE} documents were taken");
    let began = Instant::now();
    let (save, ()) = hold(node, move |core| core.take(id, other, None).map(drop)).await?;
    let saved = began.elapsed().as_secs_f64() * 1000.0;
    let changed = renamed(few, keys, round)?;
    let (document, ()) = hold(node, move |core| {
        core.take(id, vec![changed], None).map(drop)
    })
    .await?;
    let (added, text) = (format!("own-{round}"), RecordData::Txt("x".into()));
    let (dns_add, ()) = hold(node, move |core| {
        core.dns_add("lab", &added, &[text], 60).map(drop)
    })
    .await?;
    let upkeep = look(node).await?;
    let (compare, _) = time(node, move |core| core.answer_compare(peer, id, [0; 32])).await?;
    let (pull, _) = time(node, move |core| core.records_for(peer, id).is_some()).await?;
    let ask = stranger(node, id).await?;
    Ok([
        receive, save, saved, document, dns_add, upkeep, compare, pull, ask,
    ])
}

/// Newer documents of as many members as a piece holds; others with each `step`, as a rate counts each member's.
fn newer(docs: &[Signed], keys: &BTreeMap<PeerId, Identity>, step: usize) -> Result<Vec<Verified>> {
    let some = docs.iter().cycle().skip(step * PIECE).take(PIECE);
    some.map(|signed| {
        let Body::Announcement(mut announcement) = signed.verify()? else {
            anyhow::bail!("an announcement was expected")
        };
        announcement.version += 1 + step as u64;
        let who = keys.get(&signed.issuer).context("its member")?;
        Ok(Signed::new(signed.subnet, &Body::Announcement(announcement), &who.key).check()?)
    })
    .collect()
}

/// The longest hold of the node's thread, in milliseconds, until what a job decides is saved and published, and a moment
/// longer.
async fn hold<T: Send + 'static>(
    node: &Node,
    job: impl FnOnce(&mut Core) -> Result<T, Error> + Send + 'static,
) -> Result<(f64, T)> {
    let wrong = |e: Error| anyhow::anyhow!("{e}");
    node.run_in(Lane::Own, |core| core.longest())
        .await
        .map_err(wrong)?;
    let done = node
        .run_in(Lane::Own, job)
        .await
        .map_err(wrong)?
        .map_err(wrong)?;
    let wanted = node
        .run_in(Lane::Own, |core| core.generation())
        .await
        .map_err(wrong)?;
    let mut shown = node.published();
    shown.wait_for(|shown| *shown >= wanted).await?;
    let longest = node
        .run_in(Lane::Own, |core| core.longest())
        .await
        .map_err(wrong)?;
    Ok((longest.as_secs_f64() * 1000.0, done))
}

/// The longest hold of a look at the subnet, as soon as one is due: each leaves the thread to others for twenty times as long
/// as it took.
async fn look(node: &Node) -> Result<f64> {
    let looks = || async {
        node.run_in(Lane::Own, |core| core.work().looks)
            .await
            .map_err(|e| anyhow::anyhow!("{e}"))
    };
    let before = looks().await?;
    for _ in 0..2400 {
        let (held, ()) = hold(node, Core::tick).await?;
        if looks().await? > before {
            return Ok(held);
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    anyhow::bail!("upkeep looked at nothing")
}

/// An announcement of a member in which one workload has another name.
fn renamed(
    announcements: &[Signed],
    keys: &BTreeMap<PeerId, Identity>,
    round: usize,
) -> Result<Verified> {
    let signed = announcements.get(round).context("an announcement")?;
    let Body::Announcement(mut announcement) = signed.verify()? else {
        anyhow::bail!("an announcement was expected")
    };
    announcement.version += 10_000;
    announcement
        .workloads
        .last_mut()
        .context("a workload")?
        .name = name(&format!("other-{round}"))?;
    let who = keys.get(&signed.issuer).context("its member")?;
    Ok(Signed::new(signed.subnet, &Body::Announcement(announcement), &who.key).check()?)
}

/// A question of somebody new that nobody decides by itself.
async fn stranger(node: &Node, id: SubnetId) -> Result<f64> {
    let who = identity(1_000_000);
    let asked = Ask {
        subnet: id,
        joiner: who.peer,
        data_key: who.data_key,
        seal_key: who.seal_key,
        name: name("new")?,
        name_is_default: true,
        ip: None,
        asked: byway::node::unix_now(),
        proof: None,
    };
    let request = JoinRequest::Ask(SignedAsk::new(&asked, &who.key));
    let question = node
        .checker()
        .question(request)
        .await
        .map_err(|e| anyhow::anyhow!("{e}"))?;
    Ok(time(node, move |core| {
        core.decide_join(who.peer, Payer::Inside, &question, false)
    })
    .await?
    .0)
}

async fn time<T: Send + 'static>(
    node: &Node,
    job: impl FnOnce(&mut Core) -> T + Send + 'static,
) -> Result<(f64, T)> {
    let lane = Lane::Peer {
        from: Payer::Member(PeerId([9; 32])),
        urgent: false,
        cost: 1,
    };
    let timed = move |core: &mut Core| {
        let start = Instant::now();
        let result = job(core);
        (start.elapsed().as_secs_f64() * 1000.0, result)
    };
    node.run_in(lane, timed)
        .await
        .map_err(|e| anyhow::anyhow!("{e}"))
}
