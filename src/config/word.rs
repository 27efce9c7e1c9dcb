//! The override of `transport.relay` that `relay offer` and `relay off` make, and that the state directory keeps.
//!
//! The last change wins: the override stands over the configuration until the same keys of the configuration change from
//! what they were when the command was given.

use serde::{Deserialize, Serialize};

use super::{Config, RelayConfig, RelayOffer, keys};

/// The override that the last `relay offer` or `relay off` made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelayWord {
    offer: bool,
    /// Mbit/s at most; none: as the configuration says.
    max_mbit: Option<u32>,
    over: Over,
}

/// What the configuration said when the word was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Over {
    offer: String,
    max_mbit: u32,
}

impl Over {
    fn of(written: &RelayConfig) -> Over {
        Over {
            offer: keys::shown_offer(written.offer).to_string(),
            max_mbit: written.max_mbit,
        }
    }
}

impl RelayWord {
    /// A word given while the configuration itself says what is `written`.
    pub fn new(offer: bool, max_mbit: Option<u32>, written: &RelayConfig) -> RelayWord {
        RelayWord {
            offer,
            max_mbit,
            over: Over::of(written),
        }
    }

    /// Reads what [`RelayWord::to_bytes`] gave; none of anything else.
    pub fn parse(bytes: &[u8]) -> Option<RelayWord> {
        serde_json::from_slice(bytes).ok()
    }

    /// The word as it is kept.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Nothing of it can fail to be written: it is made of words and numbers.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Puts the word in force over a configuration as it was read, and says whether it still counts there.
    pub fn apply(&self, config: &mut Config) -> bool {
        if self.over != Over::of(&config.relay) {
            return false;
        }
        let (offer, verb) = if self.offer {
            (RelayOffer::Always, "command line (relay offer)")
        } else {
            (RelayOffer::Never, "command line (relay off)")
        };
        config.relay.offer = offer;
        config
            .origins
            .insert("transport.relay.offer", verb.to_owned());
        if let Some(max_mbit) = self.max_mbit {
            config.relay.max_mbit = max_mbit;
            config
                .origins
                .insert("transport.relay.max_mbit", verb.to_owned());
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_spoke_last_counts() {
        let read = Config::defaults("a");
        let word = RelayWord::new(true, Some(40), &read.relay);
        assert_eq!(RelayWord::parse(&word.to_bytes()), Some(word.clone()));
        let mut config = read.clone();
        assert!(word.apply(&mut config));
        assert_eq!(
            (config.relay.offer, config.relay.max_mbit),
            (RelayOffer::Always, 40)
        );
        for key in ["transport.relay.offer", "transport.relay.max_mbit"] {
            assert_eq!(config.origins[key], "command line (relay offer)");
        }
        // The file says something else since.
        let mut edited = read.clone();
        edited.relay.max_mbit = 7;
        let before = edited.clone();
        assert!(!word.apply(&mut edited));
        assert_eq!(edited, before);
        // What the word says nothing of stays as it is written.
        let mut config = before.clone();
        assert!(RelayWord::new(false, None, &before.relay).apply(&mut config));
        assert_eq!(
            (config.relay.offer, config.relay.max_mbit),
            (RelayOffer::Never, 7)
        );
        assert!(!config.origins.contains_key("transport.relay.max_mbit"));
    }

    #[test]
    fn what_no_byway_wrote_is_no_word() {
        for bytes in [&b""[..], b"{}", b"\xff", b"{\"offer\":true}"] {
            assert_eq!(RelayWord::parse(bytes), None);
        }
    }
}
