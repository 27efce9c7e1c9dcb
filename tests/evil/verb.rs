//! The verbs of the malicious peer and their options, as its command line reads them.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::Result;
use byway::model::id::{Name, PeerId, SubnetId};
use clap::{Args, Parser, Subcommand};
use ipnet::{Ipv4Net, Ipv6Net};
use libp2p::Multiaddr;

use super::claims::{Claim, Shape};
use super::dice::{self, Dice};
use super::hand::{self, Hand};
use super::peer::Place;

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
pub struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Args, Clone)]
pub struct Aim {
    /// Where the victims listen: 10.99.0.1:4100, [fd99::1]:4100 or multiaddrs; the first is asked for records
    #[arg(long, value_delimiter = ',', required = true, value_name = "ADDRESS,…")]
    to: Vec<Place>,
    /// The subnet's ID
    #[arg(long, value_name = "ID")]
    subnet: SubnetId,
    #[command(flatten)]
    pub with: With,
}

#[derive(Args, Clone)]
pub struct With {
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
    pub seed: Option<u64>,
}

#[derive(Subcommand)]
pub enum Verb {
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
    /// Prints what a member is told: heads, grants, documents
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
    /// Asks a member to knock at addresses of others, again and again, and lies about knocks (as a member whose ID is smaller)
    KnockStorm {
        /// The member's ID
        victim: PeerId,
        #[command(flatten)]
        aim: Aim,
        /// Our own address
        #[arg(long, value_name = "ADDRESS:PORT")]
        listen: SocketAddr,
        /// Where it is to knock
        #[arg(
            long,
            value_delimiter = ',',
            required = true,
            value_name = "ADDRESS:PORT,…"
        )]
        at: Vec<SocketAddr>,
        /// Words in a second
        #[arg(long, default_value_t = 400)]
        rate: u32,
        /// Seconds
        #[arg(long = "for", default_value_t = 6)]
        lasts: u64,
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
    pub fn dice(&self) -> Dice {
        let seed = self.seed.unwrap_or_else(dice::seed);
        println!("seed {seed}");
        Dice::new(seed)
    }

    pub fn hand(&self, to: Vec<Place>, subnet: SubnetId) -> Result<Hand> {
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
    pub fn hand(&self) -> Result<Hand> {
        self.with.hand(self.to.clone(), self.subnet)
    }
}
