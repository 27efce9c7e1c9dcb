//! A malicious peer: real libp2p (TCP or memory, Noise, yamux) with any key, and none of the rules.
//!
//! One half is what people drive: `cargo test --test evil -- VERB …`, or the program itself, `evil --help`. The other half
//! is what the tests drive: `netns evil VERB …` inside a namespace, and [`walk`] against daemons in memory. Every move of
//! it goes over the wire; nothing here reads or changes a victim by another way.
//!
//! | module | what is in it |
//! |---|---|
//! | [`peer`] | a connection without rules of its own: streams, protocols, requests, one stream at a time |
//! | [`forge`] | records that no honest node would sign; the only place that knows their formats |
//! | [`hand`] | whom to attack, with which keys, from which addresses |
//! | [`claims`] | moves made of records: heads, grants, names, clocks, replays |
//! | [`line`] | a session with a victim, and datagrams under its keys |
//! | [`knocks`] | moves made of knocks: storms of them, at others' addresses, and lies about what came |
//! | [`load`] | moves made of numbers: floods, strangers, requests, growth, half-open connections |
//! | [`verb`] | the words of its command line; `cli` does what they say |
//! | [`founder`] | a subnet whose founder is the enemy |
//! | [`walk`] | all of it in an order drawn from a seed |

pub mod claims;
pub mod cli;
pub mod dice;
pub mod forge;
pub mod founder;
pub mod hand;
pub mod knocks;
pub mod line;
pub mod load;
pub mod peer;
pub mod pending;
pub mod verb;
pub mod walk;
