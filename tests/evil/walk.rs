//! Every move in an order drawn from a seed: what no list of cases thinks of.

use std::fmt;
use std::time::Duration;

use anyhow::Result;
use byway::model::id::PeerId;
use ed25519_dalek::SigningKey;

use super::claims::{self, Claim, Shape};
use super::dice::Dice;
use super::hand::{Hand, Tally};
use super::load::{self, Flood};
use super::peer::peer_of;

/// Longest one move may take.
const MOVE: Duration = Duration::from_secs(4);

/// Who acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Never was a member.
    Stranger,
    /// Is one.
    Member,
    /// Admits and removes.
    Admin,
    /// Did so once.
    Former,
}

/// One key and what it is in the subnet.
#[derive(Clone)]
pub struct Actor {
    /// What it is.
    pub standing: Standing,
    /// Its key.
    pub key: SigningKey,
}

/// One move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Move {
    Heads,
    Revoke,
    Usurp,
    Grants(Shape),
    Names,
    Clock,
    Replay,
    Mutual,
    Register,
    Items,
    Present,
    Flood,
    Requests,
    Invites,
    Growth,
    Garbage,
}

const MOVES: &[Move] = &[
    Move::Heads,
    Move::Revoke,
    Move::Usurp,
    Move::Grants(Shape::Pool),
    Move::Grants(Shape::Crown),
    Move::Grants(Shape::Block),
    Move::Grants(Shape::MadeUp),
    Move::Grants(Shape::Again),
    Move::Grants(Shape::Ever),
    Move::Grants(Shape::Others),
    Move::Names,
    Move::Names,
    Move::Clock,
    Move::Replay,
    Move::Mutual,
    Move::Register,
    Move::Items,
    Move::Present,
    Move::Flood,
    Move::Requests,
    Move::Invites,
    Move::Growth,
    Move::Garbage,
];

/// What was done, for whoever has to understand a failure.
pub struct Step {
    number: usize,
    standing: Standing,
    what: Move,
    outcome: String,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {:?} as {:?}: {}",
            self.number, self.what, self.standing, self.outcome
        )
    }
}

/// A walk: the same seed makes the same moves, whatever the victims answer.
pub struct Walk {
    /// Whom, and with what; its key is replaced by the actor's.
    pub hand: Hand,
    /// Who may act.
    pub actors: Vec<Actor>,
    /// Names worth taking.
    pub names: Vec<String>,
    /// Identities in whose name something can be said.
    pub victims: Vec<PeerId>,
    /// Identities to put out.
    pub expendable: Vec<PeerId>,
    dice: Dice,
    steps: usize,
}

impl Walk {
    /// A walk of a seed.
    pub fn new(hand: Hand, actors: Vec<Actor>, seed: u64) -> Walk {
        Walk {
            hand,
            actors,
            names: vec![],
            victims: vec![],
            expendable: vec![],
            dice: Dice::new(seed),
            steps: 0,
        }
    }

    /// The next move. A refusal is an outcome, not an error.
    pub async fn step(&mut self) -> Step {
        // Drawn before anything is awaited, so that what the victims do changes no later draw.
        let (actor, what) = (
            self.dice.pick(&self.actors).cloned(),
            self.dice.pick(MOVES).copied(),
        );
        let (Some(actor), Some(what)) = (actor, what) else {
            return Step {
                number: 0,
                standing: Standing::Stranger,
                what: Move::Garbage,
                outcome: "nobody acts".into(),
            };
        };
        let mut dice = Dice::new(self.dice.roll());
        self.steps += 1;
        let mut hand = Hand {
            key: actor.key.clone(),
            ..self.hand.clone()
        };
        if actor.standing == Standing::Former {
            // Nobody talks to a former admin: a member passes on what it signs.
            hand.carrier = self
                .actors
                .iter()
                .find(|a| a.standing == Standing::Member)
                .map(|a| a.key.clone());
        }
        let outcome = match tokio::time::timeout(MOVE, self.act(&hand, what, &mut dice)).await {
            Ok(Ok(tally)) => tally.to_string(),
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => "took too long".to_owned(),
        };
        Step {
            number: self.steps,
            standing: actor.standing,
            what,
            outcome,
        }
    }

    async fn act(&self, hand: &Hand, what: Move, dice: &mut Dice) -> Result<Tally> {
        let (few, brief) = (usize::try_from(1 + dice.below(8))?, Duration::from_secs(2));
        match what {
            Move::Heads => claims::heads(hand, dice, 1, 200 + few as u64 * 100).await,
            Move::Revoke => {
                let victim: Vec<PeerId> =
                    dice.pick(&self.expendable).copied().into_iter().collect();
                let generation = if dice.below(2) == 0 { u32::MAX } else { 1 };
                claims::revoke(hand, &victim, generation).await
            }
            Move::Usurp => claims::usurp(hand, dice.below(2) == 0).await,
            Move::Grants(shape) => claims::grants(hand, dice, shape, few as u64).await,
            Move::Names => {
                let claims: Vec<Claim> = self.names.iter().filter_map(|n| n.parse().ok()).collect();
                claims::names(hand, &claims, dice.below(2) == 0).await
            }
            Move::Clock => claims::clock(hand, dice.below(86_400 * 400)).await,
            Move::Replay => claims::replay(hand, dice).await,
            Move::Mutual => {
                let mut known = self
                    .actors
                    .iter()
                    .filter(|a| a.standing != Standing::Stranger);
                let partner = known.rfind(|a| a.key != hand.key);
                match partner {
                    Some(partner) => claims::mutual(hand, &partner.key).await,
                    None => Ok(Tally::default()),
                }
            }
            Move::Register => claims::register(hand, &self.names).await,
            Move::Items => claims::items(hand, dice, 200).await,
            Move::Present => claims::present(hand, dice).await,
            Move::Flood => {
                let issuer = dice
                    .pick(&self.victims)
                    .copied()
                    .filter(|_| dice.below(2) == 0);
                let pause = Duration::from_millis(dice.below(100));
                let flood = Flood {
                    issuer,
                    records: 50 * few,
                    inflight: few,
                    pause,
                    lasts: brief,
                };
                load::flood(hand, dice, flood).await
            }
            Move::Requests => load::requests(hand, dice, few, "guest", brief).await,
            Move::Invites => {
                let issuer = dice
                    .pick(&self.victims)
                    .copied()
                    .unwrap_or(peer_of(&hand.key));
                load::invites(hand, dice, issuer, 50, brief).await
            }
            Move::Growth => load::growth(hand, dice, few, 200, brief).await,
            Move::Garbage => load::garbage(hand, dice, few as u64).await,
        }
    }
}
