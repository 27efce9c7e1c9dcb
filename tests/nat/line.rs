//! The bad line: what arrives, when, and in which order.

use std::time::Duration;

use super::nat::{Weather, Wire};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Sends a packet of `size` bytes each millisecond; what arrives within ten seconds more, with its time.
fn sent(weather: Weather, count: u16, size: usize) -> Vec<(Duration, u16)> {
    let mut wire = Wire::new(weather, 7);
    let mut got = Vec::new();
    for now in 0..u64::from(count) + 10_000 {
        if let Ok(number) = u16::try_from(now)
            && number < count
        {
            let mut packet = number.to_be_bytes().to_vec();
            packet.resize(size, 0);
            wire.push(ms(now), packet);
        }
        while let Some(packet) = wire.pop(ms(now)) {
            got.push((ms(now), u16::from_be_bytes([packet[0], packet[1]])));
        }
    }
    got
}

#[test]
fn a_good_line_gives_everything_at_once_and_in_order() {
    let got = sent(Weather::default(), 100, 100);
    assert_eq!(got, (0..100).map(|n| (ms(n.into()), n)).collect::<Vec<_>>());
}

#[test]
fn delay_and_jitter_keep_within_their_bounds_and_only_jitter_reorders() {
    let weather = Weather {
        delay: ms(50),
        ..Weather::default()
    };
    assert!(
        sent(weather.clone(), 100, 100)
            .iter()
            .all(|(at, n)| *at == ms(50 + u64::from(*n)))
    );
    let got = sent(
        Weather {
            jitter: ms(10),
            ..weather
        },
        200,
        100,
    );
    let late = |(at, n): &(Duration, u16)| *at - ms((*n).into());
    assert!(got.iter().all(|g| (ms(40)..=ms(61)).contains(&late(g))));
    assert!(got.windows(2).any(|w| w[0].1 > w[1].1), "none overtook");
}

#[test]
fn loss_and_duplicates_come_as_often_as_asked() {
    let lost = sent(
        Weather {
            loss: 20_000,
            ..Weather::default()
        },
        2000,
        100,
    );
    assert!((1500..1700).contains(&lost.len()), "{}", lost.len());
    let twice = sent(
        Weather {
            duplicate: 10_000,
            ..Weather::default()
        },
        2000,
        100,
    );
    assert!((2140..2260).contains(&twice.len()), "{}", twice.len());
}

#[test]
fn reordered_packets_are_those_that_do_not_wait() {
    let got = sent(
        Weather {
            delay: ms(20),
            reorder: 25_000,
            ..Weather::default()
        },
        1000,
        100,
    );
    let early = got.iter().filter(|(at, n)| *at == ms((*n).into())).count();
    assert!((200..300).contains(&early), "{early}");
}

#[test]
fn a_rate_spreads_packets_and_loses_what_would_wait_too_long() {
    // 1,000 packets of 1,000 bytes at 4 Mbit/s: one each 2 ms, and they come each 1 ms.
    let got = sent(
        Weather {
            rate: Some(4_000_000),
            ..Weather::default()
        },
        1000,
        1000,
    );
    assert!((480..600).contains(&got.len()), "{}", got.len());
    assert!(got.windows(2).all(|w| w[1].0 - w[0].0 >= ms(1)));
    assert!(got.iter().all(|(at, n)| *at - ms((*n).into()) <= ms(54)));
}

#[test]
fn large_packets_vanish_and_small_ones_pass() {
    let weather = Weather {
        larger_than: Some(1200),
        ..Weather::default()
    };
    assert!(sent(weather.clone(), 10, 1201).is_empty());
    assert_eq!(sent(weather, 10, 1200).len(), 10);
}
