//! `towline-relay enroll`.

use std::time::{Duration, SystemTime};

use clap::Args;
use towline_tunnel::{
    carrier::dial::RelayAddress,
    fault::{Fault, Report},
    values::duration,
};

use super::{Place, print};
use crate::{
    enrol::{DEFAULT_TTL, PublicAddress, TokenRequest, make_token},
    registry::ClusterName,
    values::moment,
};

#[derive(Args, Debug)]
pub(super) struct Enroll {
    /// Name of the cluster: lower-case letters, digits, `-` and `.`
    name: ClusterName,

    /// How long the token is good
    #[arg(long, value_name = "TIME", default_value = DEFAULT_TTL, value_parser = duration)]
    ttl: Duration,

    /// Let another cluster take over the name, with its roles
    #[arg(long)]
    replace: bool,

    /// Where the agent finds the relay, if not where it last served
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,

    #[command(flatten)]
    place: Place,
}

impl Enroll {
    pub(super) async fn run(self, now: SystemTime) -> Result<(), Report> {
        let registry = self.place.registry().await?;
        let noted = PublicAddress::noted(&registry).await?;
        let address = match (self.public_url, noted) {
            (Some(url), noted) => PublicAddress {
                relay: RelayAddress::parse(&url)?,
                ca_pem: noted.and_then(|noted| noted.ca_pem),
            },
            (None, Some(noted)) => noted,
            (None, None) => {
                return Err(Report::new(
                    Fault::ConfigInvalid,
                    "this relay never served, so its address is not known: start it, or give --public-url",
                ));
            }
        };
        let request = TokenRequest { name: self.name, ttl: self.ttl, replaces: self.replace, address };
        let name = request.name.clone();
        let token = make_token(&registry, self.place.keys()?.identity_hash(), request, now).await?;
        print(&token.encode())?;
        eprintln!(
            "This lets one cluster in, as {name}, once, until {}. Give it to the agent in a file: --enrolment-token-file",
            moment(token.expires)
        );
        Ok(())
    }
}
