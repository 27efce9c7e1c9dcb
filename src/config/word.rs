//! The override of `transport.relay` that `relay offer`, `relay off` and `relay auto` make, and that the state directory keeps.
//!
//! The last change wins: the override stands over the configuration until the same keys of the configuration change from
//! what they were when the command was given.

use serde::{Deserialize, Serialize};

use super::{Config, RelayConfig, RelayOffer, keys};

/// The override that the last `relay offer`, `relay off` or `relay auto` made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelayWord {
    offer: Said,
    /// Mbit/s at most; none: as the configuration says.
    max_mbit: Option<u32>,
    over: Over,
}

/// What was said, as `transport.relay.offer` is written in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Said {
    Switch(bool),
    Word(Word),
}

/// The only word that such a value may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Auto,
}

impl Said {
    fn of(offer: RelayOffer) -> Said {
        match offer {
            RelayOffer::Auto => Said::Word(Word::Auto),
            RelayOffer::Always => Said::Switch(true),
            RelayOffer::Never => Said::Switch(false),
        }
    }
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
    pub fn new(offer: RelayOffer, max_mbit: Option<u32>, written: &RelayConfig) -> RelayWord {
        RelayWord {
            offer: Said::of(offer),
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
        let (offer, verb) = match self.offer {
            Said::Switch(true) => (RelayOffer::Always, "command line (relay offer)"),
            Said::Switch(false) => (RelayOffer::Never, "command line (relay off)"),
            Said::Word(Word::Auto) => (RelayOffer::Auto, "command line (relay auto)"),
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
        let word = RelayWord::new(RelayOffer::Always, Some(40), &read.relay);
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
        assert!(RelayWord::new(RelayOffer::Never, None, &before.relay).apply(&mut config));
        assert_eq!(
            (config.relay.offer, config.relay.max_mbit),
            (RelayOffer::Never, 7)
        );
        assert!(!config.origins.contains_key("transport.relay.max_mbit"));
    }

    #[test]
    fn auto_stands_over_a_file_that_says_otherwise_and_is_kept() {
        for written in [RelayOffer::Always, RelayOffer::Never, RelayOffer::Auto] {
            let mut config = Config::defaults("a");
            config.relay.offer = written;
            let word = RelayWord::new(RelayOffer::Auto, None, &config.relay);
            let kept = RelayWord::parse(&word.to_bytes()).unwrap();
            assert_eq!(kept, word);
            assert!(kept.apply(&mut config));
            assert_eq!(config.relay.offer, RelayOffer::Auto);
            let origin = &config.origins["transport.relay.offer"];
            assert_eq!(origin, "command line (relay auto)");
        }
    }

    #[test]
    fn what_no_byway_wrote_is_no_word() {
        let well = br#"{"offer":"auto","max_mbit":null,"over":{"offer":"true","max_mbit":7}}"#;
        assert!(RelayWord::parse(well).is_some());
        let odd = br#"{"offer":"autp","max_mbit":null,"over":{"offer":"true","max_mbit":7}}"#;
        for bytes in [&b""[..], b"{}", b"\xff", b"{\"offer\":true}", odd] {
            assert_eq!(RelayWord::parse(bytes), None);
        }
    }
}
