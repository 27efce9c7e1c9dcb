//! The words people drive the malicious peer with.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use byway::model::id::{Name, PeerId, SubnetId};
use byway::model::join::Invite;
use clap::{Args, CommandFactory, Parser, Subcommand};
use ipnet::{Ipv4Net, Ipv6Net};
use libp2p::Multiaddr;

use super::claims::{self, Claim, Shape};
use super::dice::{self, Dice};
use super::founder::{Founder, Wish};
use super::hand::{self, Hand, Tally};
use super::load::{self, Flood};
use super::peer::{Place, peer_of};
use super::pending;
use super::walk::{Actor, Standing, Walk};

const MORE: &str = "\
It attacks what it is pointed at, as hard as it is told to: use it against daemons of your own, in namespaces of your own.

A KEY is a state directory, a key file, word:TEXT (made of the text, the same each time) or random. Whoever has a member's \
key is that member: stop its daemon and take its state directory, or let the program join by itself:

  evil join INVITE --to 10.99.0.1:4100 --key word:m
  evil show  --to 10.99.0.1:4100 --subnet ID --key word:m
  evil names db --to 10.99.0.1:4100,10.99.0.3:4100 --subnet ID --key word:m
  evil grants again --to 10.99.0.1:4100 --subnet ID --key word:former-admin --carrier word:m

Each verb prints what it was answered, counted. Exit codes: 0 it was done (whatever the answers), 1 it could not be done, \
2 wrong words.";

#[derive(Parser)]
#[command(name = "evil", about = "A malicious peer: speaks with any key and keeps no rule", after_help = MORE)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Args, Clone)]
struct Aim {
    /// Where the victims listen: 10.99.0.1:4100, [fd99::1]:4100 or multiaddrs; the first is asked for records
    #[arg(long, value_delimiter = ',', required = true, value_name = "ADDRESS,…")]
    to: Vec<Place>,
    /// The subnet's ID
    #[arg(long, value_name = "ID")]
    subnet: SubnetId,
    #[command(flatten)]
    with: With,
}

#[derive(Args, Clone)]
struct With {
    /// Who signs
    #[arg(long, default_value = "random", value_name = "KEY")]
    key: String,
    /// Who connects, where it is another
    #[arg(long, value_name = "KEY")]
    carrier: Option<String>,
    /// Addresses of this machine to connect from, in turn
    #[arg(long, value_delimiter = ',', value_name = "IP,…")]
    from: Vec<IpAddr>,
    /// Repeats a run; else a seed is drawn. It is printed
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
}

#[derive(Subcommand)]
enum Verb {
    /// Joins like anybody, by an invite or an ID, without a daemon
    Join {
        /// byway1… or a subnet's ID
        target: String,
        /// The name it asks for
        #[arg(long, default_value = "mallory")]
        name: String,
        /// Where a member listens
        #[arg(long, value_name = "ADDRESS")]
        to: Place,
        #[command(flatten)]
        with: With,
    },
    /// Prints what a member is told: heads, grants, announcements
    Show(Aim),
    /// Revokes peers that exist nowhere, so that what the owner has to repeat does not fit (as an admin)
    Heads {
        #[command(flatten)]
        aim: Aim,
        #[arg(long, default_value_t = 2)]
        batches: u64,
        #[arg(long, default_value_t = 3900)]
        revocations: u64,
    },
    /// Revokes given peers up to a generation, by default for ever (as an admin)
    Revoke {
        #[arg(required = true)]
        peers: Vec<PeerId>,
        #[command(flatten)]
        aim: Aim,
        #[arg(long, default_value_t = u32::MAX)]
        generation: u32,
    },
    /// Says the owner's word: who administers, or that the subnet is over
    Usurp {
        #[command(flatten)]
        aim: Aim,
        #[arg(long)]
        ends: bool,
    },
    /// Signs grants nobody should
    Grants {
        shape: Shape,
        #[command(flatten)]
        aim: Aim,
        /// How many, where they are made up
        #[arg(long, default_value_t = 300)]
        count: u64,
    },
    /// Two removed admins let each other in again
    Mutual {
        /// The other admin's key
        partner: String,
        #[command(flatten)]
        aim: Aim,
    },
    /// Claims names, of workloads (db) or any other (db.b), with an address (db=10.77.2.9) or a spare one
    Names {
        #[arg(required = true)]
        claims: Vec<Claim>,
        #[command(flatten)]
        aim: Aim,
        /// As entries, not as workloads
        #[arg(long)]
        entries: bool,
    },
    /// Registers names for itself and takes them from others (as an admin)
    Register {
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        aim: Aim,
    },
    /// Says things of a kind that nobody knows, 4 KB each
    Items {
        #[command(flatten)]
        aim: Aim,
        #[arg(long, default_value_t = 200)]
        count: u64,
    },
    /// Shows heads and grants of its own making, as a stranger
    Present(Aim),
    /// Names addresses that the victims are to dial
    Dials {
        #[arg(required = true)]
        addresses: Vec<Multiaddr>,
        #[command(flatten)]
        aim: Aim,
        /// Made-up addresses said by identify besides
        #[arg(long, default_value_t = 0)]
        claimed: u32,
    },
    /// Signs what is dated into the future
    Clock {
        #[command(flatten)]
        aim: Aim,
        /// Seconds
        #[arg(long, default_value_t = 3600)]
        ahead: u64,
    },
    /// Says again what was said: cut, changed, for another subnet, in our own name
    Replay(Aim),
    /// Pushes records nobody signed, as fast as they are taken
    Flood {
        #[command(flatten)]
        aim: Aim,
        /// In whose name; else each is from somebody who exists nowhere
        #[arg(long = "as", value_name = "PEER")]
        issuer: Option<PeerId>,
        /// In one message
        #[arg(long, default_value_t = 9000)]
        records: usize,
        /// Messages under way at once
        #[arg(long, default_value_t = 48)]
        inflight: usize,
        /// Milliseconds between two messages of each
        #[arg(long, default_value_t = 0)]
        pause: u64,
        /// Seconds
        #[arg(long = "for", default_value_t = 10)]
        lasts: u64,
    },
    /// Begins connections and never finishes them
    Pending {
        #[command(flatten)]
        aim: Aim,
        /// From each of our addresses
        #[arg(long, default_value_t = 8)]
        per_source: usize,
        /// QUIC handshakes from each of our addresses
        #[arg(long, default_value_t = 0)]
        quic: usize,
        /// One byte a second instead of none
        #[arg(long)]
        drip: bool,
        /// Seconds
        #[arg(long = "for", default_value_t = 10)]
        lasts: u64,
    },
    /// Holds strangers' connections
    Strangers {
        #[command(flatten)]
        aim: Aim,
        #[arg(long, default_value_t = 80)]
        count: usize,
        /// Seconds
        #[arg(long = "for", default_value_t = 10)]
        lasts: u64,
    },
    /// Asks to join under made-up keys
    Requests {
        #[command(flatten)]
        aim: Aim,
        #[arg(long, default_value_t = 32)]
        count: usize,
        /// What they call themselves, a number behind it
        #[arg(long, default_value = "guest")]
        name: String,
        /// Seconds
        #[arg(long = "for", default_value_t = 60)]
        lasts: u64,
    },
    /// Uses up the attempts with invites, as a member who passes joiners on
    Invites {
        /// Whose invites
        issuer: PeerId,
        #[command(flatten)]
        aim: Aim,
        /// A second
        #[arg(long, default_value_t = 20)]
        rate: u64,
        /// Seconds
        #[arg(long = "for", default_value_t = 60)]
        lasts: u64,
    },
    /// Comes and goes in an open subnet and leaves as much as it may
    Growth {
        #[command(flatten)]
        aim: Aim,
        #[arg(long, default_value_t = 150)]
        count: usize,
        /// Names in what each leaves behind; 850 are 45 KB
        #[arg(long, default_value_t = 850)]
        names: usize,
        /// Seconds
        #[arg(long = "for", default_value_t = 120)]
        lasts: u64,
    },
    /// Sends bytes that are no message
    Garbage {
        #[command(flatten)]
        aim: Aim,
        #[arg(long, default_value_t = 50)]
        rounds: u64,
    },
    /// Tries which addresses take a TCP connection from here: the neighbour who has a route and no membership
    Knock {
        #[arg(required = true, value_name = "ADDRESS:PORT")]
        doors: Vec<SocketAddr>,
        /// An address of this machine
        #[arg(long, value_name = "IP")]
        from: Option<IpAddr>,
    },
    /// Tries keys until an ID ends with a text, and writes that key
    Grind {
        word: String,
        /// At the beginning, behind 12D3KooW
        #[arg(long)]
        front: bool,
        #[arg(long)]
        out: PathBuf,
    },
    /// Founds a subnet of any prefix and domain, and lets in whoever asks; prints "ready ID INVITE"
    Found {
        name: Name,
        #[arg(long)]
        cidr4: Ipv4Net,
        #[arg(long)]
        cidr6: Option<Ipv6Net>,
        #[arg(long, default_value = "evil.internal")]
        domain: String,
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long, default_value = "random", value_name = "KEY")]
        key: String,
        /// Seconds
        #[arg(long = "for", default_value_t = 600)]
        lasts: u64,
    },
    /// Makes every move, in an order drawn from the seed
    Walk {
        #[command(flatten)]
        aim: Aim,
        /// Keys of members, admins and former admins besides: admin=KEY, member=KEY, former=KEY, stranger=KEY
        #[arg(long, value_name = "WHAT=KEY")]
        actor: Vec<String>,
        #[arg(long, default_value_t = 50)]
        steps: usize,
    },
}

impl With {
    fn dice(&self) -> Dice {
        let seed = self.seed.unwrap_or_else(dice::seed);
        println!("seed {seed}");
        Dice::new(seed)
    }

    fn hand(&self, to: Vec<Place>, subnet: SubnetId) -> Result<Hand> {
        let carrier = self.carrier.as_deref().map(hand::key).transpose()?;
        Ok(Hand {
            to,
            subnet,
            key: hand::key(&self.key)?,
            carrier,
            from: self.from.clone(),
        })
    }
}

impl Aim {
    fn hand(&self) -> Result<Hand> {
        self.with.hand(self.to.clone(), self.subnet)
    }
}

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
