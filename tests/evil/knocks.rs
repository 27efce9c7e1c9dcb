//! Moves made of knocks (`byway::peer::knock`): a member that wants others to send where it points, and lies about what it heard.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use byway::model::id::PeerId;
use byway::wire::datagram::{Knock, Refusal, knock};

use super::dice::Dice;
use super::hand::{Hand, Tally};
use super::line::Line;

/// How such a storm looks.
#[derive(Debug, Clone)]
pub struct Storm {
    /// The member it is about.
    pub victim: PeerId,
    /// Our own address: the only one that it may be asked to knock at.
    pub listen: SocketAddr,
    /// Where it is to knock besides.
    pub at: Vec<SocketAddr>,
    /// Words in a second.
    pub rate: u32,
    /// How long.
    pub lasts: Duration,
}

/// Asks for knocks at our own address and at others', announces knocks that never come, sends some that nobody announced, and
/// answers whatever the victim's own test asks with the address of somebody else.
///
/// # Errors
/// There is no datagram path to the victim.
pub async fn storm(hand: &Hand, dice: &mut Dice, shape: &Storm) -> Result<Tally> {
    let mut line = Line::open(hand, shape.victim, shape.listen).await?;
    let (begun, mut tally, mut said) = (Instant::now(), Tally::default(), 0_u32);
    let lie = shape.at.first().copied().unwrap_or(shape.listen);
    while begun.elapsed() < shape.lasts {
        let due = begun.elapsed().as_secs_f64() * f64::from(shape.rate);
        while f64::from(said) < due {
            let token = dice.roll();
            let word = match said % 8 {
                0 => Knock::Expect { token },
                1 => Knock::Seen { token, from: lie },
                2 => Knock::Sent { token },
                3 => Knock::Refused {
                    token,
                    why: Refusal::Failed,
                },
                4 => ask(token, shape.listen),
                _ => ask(token, dice.pick(&shape.at).copied().unwrap_or(lie)),
            };
            line.say(word).await?;
            line.send(&knock(dice.roll())).await?;
            said += 1;
        }
        line.turn().await?;
        while let Some(word) = line.words.pop_front() {
            tally.add(match word {
                Knock::Expect { .. } => "expect",
                Knock::Seen { .. } => "seen",
                Knock::Ask { .. } => "ask",
                Knock::Sent { .. } => "sent",
                Knock::Refused { why, .. } => match why {
                    Refusal::TooOften => "too-often",
                    Refusal::Elsewhere => "elsewhere",
                    Refusal::NotSeen => "not-seen",
                    Refusal::Failed => "failed",
                },
            });
            match word {
                Knock::Expect { token } => line.say(Knock::Seen { token, from: lie }).await?,
                Knock::Ask { token, .. } => line.say(Knock::Sent { token }).await?,
                _ => {}
            }
        }
    }
    tally.more("said", u64::from(said));
    tally.more("knocks", line.knocks);
    Ok(tally)
}

fn ask(token: u64, to: SocketAddr) -> Knock {
    Knock::Ask {
        token,
        to,
        other_port: token.is_multiple_of(2),
    }
}
