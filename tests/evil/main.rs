//! The malicious peer as a program: `cargo test --test evil -- VERB …`, or this executable by itself.
//!
//! Without a verb it checks what the moves are made of, as the other test programs do: `N passed, N failed, N skipped`.

#[path = "mod.rs"]
mod evil;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use byway::model::id::{PeerId, SubnetId};
use byway::model::record::MAX_RECORD;

use evil::dice::Dice;
use evil::forge::{self, Forge, now};
use evil::peer::{Place, peer_of};
use evil::{cli, hand, load};

type Claim = (&'static str, fn() -> Result<()>);

macro_rules! claims {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name as fn() -> Result<()>)),*] };
}

const CLAIMS: &[Claim] = claims![
    the_same_seed_rolls_the_same,
    a_word_is_always_the_same_key,
    a_ground_key_ends_as_wanted,
    addresses_are_read_in_every_form,
    what_a_guest_says_is_a_record_as_large_as_it_may_be,
    made_up_grants_are_well_signed,
    what_nobody_signed_does_not_verify,
    verbs_are_told_from_parts_of_test_names,
];

fn the_same_seed_rolls_the_same() -> Result<()> {
    let rolls = |seed| {
        (0..64)
            .scan(Dice::new(seed), |dice, _| Some(dice.roll()))
            .collect::<Vec<_>>()
    };
    ensure!(rolls(7) == rolls(7) && rolls(7) != rolls(8));
    ensure!(
        (0..1000)
            .scan(Dice::new(1), |dice, _| Some(dice.below(6)))
            .all(|n| n < 6)
    );
    Ok(())
}

fn a_word_is_always_the_same_key() -> Result<()> {
    let of = |text| Ok::<PeerId, anyhow::Error>(peer_of(&hand::key(text)?));
    ensure!(
        of("word:m")? == of("word:m")?
            && of("word:m")? != of("word:n")?
            && of("random")? != of("random")?
    );
    ensure!(hand::key("/nonexistent").is_err());
    Ok(())
}

fn a_ground_key_ends_as_wanted() -> Result<()> {
    let (key, tries) = load::grind(&mut Dice::new(1), "z", true);
    ensure!(peer_of(&key).to_string().ends_with('z') && tries > 0);
    let (key, _) = load::grind(&mut Dice::new(1), "B", false);
    ensure!(peer_of(&key).to_string().starts_with("12D3KooWB"));
    Ok(())
}

fn addresses_are_read_in_every_form() -> Result<()> {
    for text in ["10.99.0.1:4100", "/ip4/10.99.0.1/tcp/4100"] {
        ensure!(text.parse::<Place>()? == Place::Tcp("10.99.0.1:4100".parse()?));
    }
    for text in ["[fd99::1]:4100", "/ip6/fd99::1/tcp/4100"] {
        ensure!(text.parse::<Place>()? == Place::Tcp("[fd99::1]:4100".parse()?));
    }
    ensure!("/memory/7".parse::<Place>()? == Place::Memory(7));
    ensure!(
        "nowhere".parse::<Place>().is_err()
            && "/ip4/10.0.0.1/udp/1/quic-v1".parse::<Place>().is_err()
    );
    Ok(())
}

fn what_a_guest_says_is_a_record_as_large_as_it_may_be() -> Result<()> {
    let (subnet, key) = (SubnetId([1; 16]), hand::key("word:guest")?);
    let forge = Forge { subnet, key: &key };
    let said = forge.announcement(forge::stuffed(850));
    ensure!(
        (40_000..MAX_RECORD).contains(&said.body.len()),
        "{} bytes",
        said.body.len()
    );
    said.verify().context("a large announcement")?;
    // A goodbye says nothing else: with something beside it, it is no record.
    ensure!(forge.farewell(1).verify().is_err());
    forge.farewell(0).verify().map(drop).context("a goodbye")
}

fn made_up_grants_are_well_signed() -> Result<()> {
    let key = hand::key("word:admin")?;
    let record = Forge {
        subnet: SubnetId([1; 16]),
        key: &key,
    }
    .grant(forge::made_up(&mut Dice::new(3), now(), 1));
    ensure!(record.body.len() > 15_000, "{} bytes", record.body.len());
    record.verify().map(drop).context("a made-up grant")
}

fn what_nobody_signed_does_not_verify() -> Result<()> {
    let mut dice = Dice::new(5);
    for _ in 0..100 {
        let record = forge::unsigned(
            SubnetId([1; 16]),
            PeerId(dice.key()),
            forge::stub(&mut dice),
        );
        ensure!(record.verify().is_err());
    }
    Ok(())
}

fn verbs_are_told_from_parts_of_test_names() -> Result<()> {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    for part in ["a_part_of_a_name", "-q", "--exact heads_of_state"] {
        ensure!(cli::main(&words(part)).is_none(), "{part}");
    }
    // Wrong words behind a verb are wrong words, and nobody is attacked.
    ensure!(cli::main(&words("heads --nowhere")) == Some(ExitCode::from(2)));
    Ok(())
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some(code) = cli::main(&words) {
        return code;
    }
    // Parts of names, as cargo's own harness takes them.
    let filters: Vec<&String> = words.iter().filter(|w| !w.starts_with('-')).collect();
    let chosen = CLAIMS
        .iter()
        .filter(|(name, _)| filters.is_empty() || filters.iter().any(|f| name.contains(*f)));
    let (mut passed, mut failed) = (0, 0);
    for (name, claim) in chosen {
        match claim() {
            Ok(()) => {
                println!("test {name} ... ok");
                passed += 1;
            }
            Err(error) => {
                println!("test {name} ... FAILED\n{error:#}");
                failed += 1;
            }
        }
    }
    println!("\n{passed} passed, {failed} failed, 0 skipped");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
