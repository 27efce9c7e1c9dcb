//! How often this node looks for others, compares with them, and asks whether they are there (`[discovery]`).

use std::time::Duration;

use super::{Config, ConfigError};

/// Seconds by which [`Discovery::dead_after`] has to exceed [`Discovery::keep_alive`]: an answer that comes late, and one
/// packet that was lost on the way.
pub const LEAST_PATIENCE: u64 = 10;

/// Periods of what goes on with nobody asking for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovery {
    /// Longest pause between two questions who is there, on each local network: the first is a second, and they double to
    /// this one once enough members have answered; from a minute to a day.
    pub announce: Duration,
    /// In which the records of each connected member are compared with ours once; from 5 s to an hour. What a message that
    /// was lost costs at most: while nothing changes for long it grows to four minutes, and with the next change it is as set.
    pub compare: Duration,
    /// Longest pause between two dials of a member that is away for more than a minute; from 5 s to an hour.
    pub redial: Duration,
    /// Pause between two pings on a connection over which nothing else goes; from 5 s to 5 minutes. NATs forget an idle UDP
    /// mapping after 30 s at the earliest. Over TCP it is twice that, up to a minute.
    pub keep_alive: Duration,
    /// Silence after which such a connection is dead; from 15 s to 15 minutes, and [`LEAST_PATIENCE`] above
    /// [`keep_alive`](Discovery::keep_alive). One in use is pinged each 5 s and dead after 12 s.
    pub dead_after: Duration,
}

impl Default for Discovery {
    fn default() -> Self {
        Discovery {
            announce: Duration::from_secs(600),
            compare: Duration::from_secs(30),
            redial: Duration::from_secs(30),
            keep_alive: Duration::from_secs(25),
            dead_after: Duration::from_secs(40),
        }
    }
}

/// Reads a period from `least` to `most` seconds.
pub(super) fn period(text: &str, least: u64, most: u64) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).unwrap_or_default();
    let scale = match unit {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        _ => None,
    };
    let seconds = number.parse().ok().zip(scale);
    let seconds = seconds.and_then(|(number, scale): (u64, u64)| number.checked_mul(scale));
    seconds
        .filter(|seconds| (least..=most).contains(seconds))
        .map(Duration::from_secs)
        .ok_or_else(|| {
            let written = |seconds: u64| shown(Duration::from_secs(seconds));
            let fits = |seconds: &u64| (least..=most).contains(seconds);
            let examples: Vec<String> = [30, 300, 3600]
                .into_iter()
                .filter(fits)
                .map(written)
                .collect();
            format!(
                "expected a time from {} to {}, as in {}",
                written(least),
                written(most),
                examples.join(" ")
            )
        })
}

/// Writes a period in the largest unit that it is a whole number of.
pub(super) fn shown(period: Duration) -> String {
    match period.as_secs() {
        seconds if seconds >= 3600 && seconds % 3600 == 0 => format!("{}h", seconds / 3600),
        seconds if seconds >= 60 && seconds % 60 == 0 => format!("{}m", seconds / 60),
        seconds => format!("{seconds}s"),
    }
}

impl Config {
    /// What of `[discovery]` does not go together.
    pub(super) fn impatient(&self) -> Option<ConfigError> {
        let Discovery {
            keep_alive,
            dead_after,
            ..
        } = self.discovery;
        if dead_after >= keep_alive + Duration::from_secs(LEAST_PATIENCE) {
            return None;
        }
        let keys = ["discovery.dead_after", "discovery.keep_alive"];
        let said = keys
            .iter()
            .find_map(|key| Some((*key, self.origins.get(key)?)));
        let (key, place) = said?;
        let value = if key == "discovery.dead_after" {
            dead_after
        } else {
            keep_alive
        };
        let why = format!(
            "discovery.dead_after ({}) has to be at least {LEAST_PATIENCE} s more than discovery.keep_alive ({}), or \
             connections that are well would be closed",
            shown(dead_after),
            shown(keep_alive)
        );
        Some(ConfigError::value(
            place.clone(),
            key,
            &format!("\"{}\"", shown(value)),
            &why,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_have_a_unit_and_bounds_and_read_back() {
        for (text, seconds) in [
            ("5s", 5),
            ("90s", 90),
            ("2m", 120),
            ("1h", 3600),
            ("060s", 60),
        ] {
            let read = period(text, 5, 3600).unwrap();
            assert_eq!(read.as_secs(), seconds, "{text}");
            assert_eq!(period(&shown(read), 5, 3600), Ok(read), "{text}");
        }
        for wrong in [
            "",
            "s",
            "5",
            "4s",
            "61m",
            "-5s",
            "5 s",
            "5ms",
            "99999999999999999999h",
            "1e3s",
        ] {
            let told = period(wrong, 5, 3600).unwrap_err();
            assert_eq!(
                told, "expected a time from 5s to 1h, as in 30s 5m 1h",
                "{wrong}"
            );
        }
    }
}
