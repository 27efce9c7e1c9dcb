//! `relay`.

use clap::Subcommand;

use crate::api::types::Request;

#[derive(Debug, Subcommand)]
pub(super) enum RelayVerb {
    /// Forward for others, and tell them so: for whom, transport.relay.for says
    Offer {
        /// Mbit/s at most, in all [default: transport.relay.max_mbit]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        max_mbit: Option<u32>,
    },
    /// Forward for nobody
    Off,
}

impl RelayVerb {
    pub(super) fn request(self) -> Request {
        match self {
            RelayVerb::Offer { max_mbit } => Request::RelayOffer { max_mbit },
            RelayVerb::Off => Request::RelayOff,
        }
    }
}
