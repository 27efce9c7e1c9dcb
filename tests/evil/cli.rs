//! What each verb of the malicious peer does.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use byway::model::id::PeerId;
use byway::model::join::Invite;
use clap::{CommandFactory, Parser};

use super::claims;
use super::dice::{self, Dice};
use super::founder::{Founder, Wish};
use super::hand::{self, Hand, Tally};
use super::knocks::{self, Storm};
use super::load::{self, Flood};
use super::peer::{Place, peer_of};
use super::pending;
use super::verb::{Aim, Cli, Verb, With};
use super::walk::{Actor, Standing, Walk};

async fn join(target: &str, name: &str, to: Place, with: &With) -> Result<()> {
    let invite = if target.starts_with("byway1") {
        Some(Invite::parse(target).map_err(|e| anyhow::anyhow!("{}", e.message))?)
    } else {
        None
    };
    let subnet = match &invite {
        Some(invite) => invite.subnet,
        None => target.parse()?,
    };
    let hand = with.hand(vec![to], subnet)?;
    let seen = hand.join(invite.as_ref(), name).await?;
    let grant = seen
        .grant(peer_of(&hand.key))
        .context("no grant for us in the answer")?;
    println!(
        "joined {subnet} as {} ({}): {:?}",
        grant.name, grant.subject, grant.addresses
    );
    Ok(())
}

async fn show(aim: &Aim) -> Result<()> {
    let hand = aim.hand()?;
    for place in &hand.to {
        let seen = hand.pull_from(*place).await?;
        println!("{place:?}: {} records", seen.records.len());
        seen.heads.iter().for_each(|(by, h)| {
            println!(
                "  head {} by {by}: least {}, seats {:?}",
                h.number, h.least, h.seats
            );
        });
        seen.grants.iter().for_each(|(by, g)| {
            println!(
                "  grant {} {:?} {} {:?} by {by}",
                g.name, g.role, g.subject, g.leases
            );
        });
        seen.revocations.iter().for_each(|(by, r)| {
            println!(
                "  revocation of {} up to {} by {by}",
                r.subject, r.generation
            )
        });
        seen.announcements.iter().for_each(|(of, d)| {
            println!(
                "  announcement {} of {of}: {} workloads, {} names",
                d.version,
                d.workloads.len(),
                d.names.len()
            );
        });
    }
    Ok(())
}

fn actor(text: &str) -> Result<Actor> {
    let (what, key) = text.split_once('=').context("an actor is WHAT=KEY")?;
    let standing = match what {
        "stranger" => Standing::Stranger,
        "member" => Standing::Member,
        "admin" => Standing::Admin,
        "former" => Standing::Former,
        _ => bail!("{what}: a stranger, member, admin or former"),
    };
    Ok(Actor {
        standing,
        key: hand::key(key)?,
    })
}

async fn walk(aim: &Aim, actors: &[String], steps: usize) -> Result<()> {
    let seed = aim.with.seed.unwrap_or_else(dice::seed);
    println!("seed {seed}");
    let hand = aim.hand()?;
    let mut all = vec![Actor {
        standing: Standing::Stranger,
        key: hand::key("random")?,
    }];
    for text in actors {
        all.push(actor(text)?);
    }
    let mut walk = Walk::new(hand.clone(), all, seed);
    if let Some(teller) = walk
        .actors
        .iter()
        .find(|a| a.standing != Standing::Stranger)
    {
        let seen = Hand {
            key: teller.key.clone(),
            ..hand
        }
        .pull()
        .await?;
        let ours: Vec<PeerId> = walk.actors.iter().map(|a| peer_of(&a.key)).collect();
        walk.victims = seen
            .grants
            .iter()
            .map(|(_, g)| g.subject)
            .filter(|p| !ours.contains(p))
            .collect();
        walk.expendable = walk.victims.clone();
        walk.names = seen
            .announcements
            .iter()
            .flat_map(|(_, d)| d.workloads.iter().map(|w| w.name.to_string()))
            .collect();
    }
    for _ in 0..steps {
        println!("{}", walk.step().await);
    }
    Ok(())
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Moves whose outcome is a count of answers.
async fn count(verb: Verb) -> Result<Tally> {
    match verb {
        Verb::Heads {
            aim,
            batches,
            revocations,
        } => claims::heads(&aim.hand()?, &mut aim.with.dice(), batches, revocations).await,
        Verb::Revoke {
            peers,
            aim,
            generation,
        } => claims::revoke(&aim.hand()?, &peers, generation).await,
        Verb::Usurp { aim, ends } => claims::usurp(&aim.hand()?, ends).await,
        Verb::Grants { shape, aim, count } => {
            claims::grants(&aim.hand()?, &mut aim.with.dice(), shape, count).await
        }
        Verb::Mutual { partner, aim } => claims::mutual(&aim.hand()?, &hand::key(&partner)?).await,
        Verb::Names {
            claims,
            aim,
            entries,
        } => claims::names(&aim.hand()?, &claims, !entries).await,
        Verb::Register { names, aim } => claims::register(&aim.hand()?, &names).await,
        Verb::Items { aim, count } => {
            claims::items(&aim.hand()?, &mut aim.with.dice(), count).await
        }
        Verb::Present(aim) => claims::present(&aim.hand()?, &mut aim.with.dice()).await,
        Verb::Dials {
            addresses,
            aim,
            claimed,
        } => claims::dials(&aim.hand()?, &addresses, claimed).await,
        Verb::Clock { aim, ahead } => claims::clock(&aim.hand()?, ahead).await,
        Verb::Replay(aim) => claims::replay(&aim.hand()?, &mut aim.with.dice()).await,
        Verb::Flood {
            aim,
            issuer,
            records,
            inflight,
            pause,
            lasts,
        } => {
            let pause = Duration::from_millis(pause);
            let flood = Flood {
                issuer,
                records,
                inflight,
                pause,
                lasts: seconds(lasts),
            };
            load::flood(&aim.hand()?, &mut aim.with.dice(), flood).await
        }
        Verb::Pending {
            aim,
            per_source,
            quic,
            drip,
            lasts,
        } => {
            let shape = pending::Shape {
                per_source,
                quic,
                drip,
                lasts: seconds(lasts),
            };
            pending::hold(&aim.hand()?, shape).await
        }
        Verb::Strangers { aim, count, lasts } => {
            load::strangers(&aim.hand()?, &mut aim.with.dice(), count, seconds(lasts)).await
        }
        Verb::Requests {
            aim,
            count,
            name,
            lasts,
        } => {
            load::requests(
                &aim.hand()?,
                &mut aim.with.dice(),
                count,
                &name,
                seconds(lasts),
            )
            .await
        }
        Verb::Invites {
            issuer,
            aim,
            rate,
            lasts,
        } => {
            load::invites(
                &aim.hand()?,
                &mut aim.with.dice(),
                issuer,
                rate,
                seconds(lasts),
            )
            .await
        }
        Verb::Growth {
            aim,
            count,
            names,
            lasts,
        } => {
            load::growth(
                &aim.hand()?,
                &mut aim.with.dice(),
                count,
                names,
                seconds(lasts),
            )
            .await
        }
        Verb::KnockStorm {
            victim,
            aim,
            listen,
            at,
            rate,
            lasts,
        } => {
            let storm = Storm {
                victim,
                listen,
                at,
                rate,
                lasts: seconds(lasts),
            };
            knocks::storm(&aim.hand()?, &mut aim.with.dice(), &storm).await
        }
        Verb::Garbage { aim, rounds } => {
            load::garbage(&aim.hand()?, &mut aim.with.dice(), rounds).await
        }
        Verb::Join { .. }
        | Verb::Show(_)
        | Verb::Grind { .. }
        | Verb::Found { .. }
        | Verb::Walk { .. }
        | Verb::Knock { .. } => {
            bail!("this verb counts nothing")
        }
    }
}

fn grind(word: &str, front: bool, out: &std::path::Path) -> Result<()> {
    let (key, tries) = load::grind(&mut Dice::new(dice::seed()), word, !front);
    let hex: String = key.to_bytes().iter().map(|b| format!("{b:02x}")).collect();
    let text = format!("byway secret key, version 1: whoever has it is this node\n{hex}\n");
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(out)?;
    std::io::Write::write_all(&mut file, text.as_bytes())?;
    println!("{} after {tries} keys, in {}", peer_of(&key), out.display());
    Ok(())
}

async fn drive(verb: Verb) -> Result<()> {
    match verb {
        Verb::Join {
            target,
            name,
            to,
            with,
        } => join(&target, &name, to, &with).await,
        Verb::Show(aim) => show(&aim).await,
        Verb::Grind { word, front, out } => grind(&word, front, &out),
        Verb::Found {
            name,
            cidr4,
            cidr6,
            domain,
            listen,
            key,
            lasts,
        } => {
            let founder = Founder::new(
                hand::key(&key)?,
                &Wish {
                    name,
                    cidr4,
                    cidr6,
                    domain,
                },
            );
            founder.serve(listen, seconds(lasts)).await
        }
        Verb::Walk { aim, actor, steps } => walk(&aim, &actor, steps).await,
        Verb::Knock { doors, from } => {
            println!("{}", load::knock(&doors, from).await);
            Ok(())
        }
        other => {
            println!("ready");
            println!("{}", count(other).await?);
            Ok(())
        }
    }
}

/// Whether a word is one of the verbs, or asks for help.
fn is_verb(word: &str) -> bool {
    matches!(word, "help" | "--help" | "-h")
        || Cli::command()
            .get_subcommands()
            .any(|c| c.get_name() == word)
}

/// Does what the words say; `None` where the first is no verb.
pub fn main(words: &[String]) -> Option<ExitCode> {
    words.first().filter(|word| is_verb(word))?;
    let cli = match Cli::try_parse_from(
        std::iter::once("evil").chain(words.iter().map(String::as_str)),
    ) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return Some(if error.use_stderr() {
                ExitCode::from(2)
            } else {
                ExitCode::SUCCESS
            });
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: {error}");
            return Some(ExitCode::FAILURE);
        }
    };
    let done = runtime.block_on(drive(cli.verb));
    // What still waits for a victim that does not answer must not keep the program.
    runtime.shutdown_background();
    match done {
        Ok(()) => Some(ExitCode::SUCCESS),
        Err(error) => {
            eprintln!("error: {error:#}");
            Some(ExitCode::FAILURE)
        }
    }
}
