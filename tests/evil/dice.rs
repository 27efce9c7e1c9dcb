//! Numbers that look random: those of a seed, and a seed that nobody knows.

pub use byway::testing::Dice;

/// A seed that nobody knows before.
pub fn seed() -> u64 {
    let mut bytes = [0; 8];
    match getrandom::fill(&mut bytes) {
        Ok(()) => u64::from_le_bytes(bytes),
        Err(_) => u64::from(std::process::id()),
    }
}
