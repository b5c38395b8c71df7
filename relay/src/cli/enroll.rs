//! `towline-relay enroll`.

use std::time::{Duration, SystemTime};

use clap::Args;
use towline_tunnel::{
    carrier::dial::RelayAddress,
    fault::{Fault, Report},
    values::duration,
};

use super::{Place, print, public_url};
use crate::{
    enrol::{DEFAULT_TTL, PublicAddress, TokenRequest, make_token},
    registry::ClusterName,
    values::moment,
};

#[derive(Args, Debug)]
pub(super) struct Enroll {
    /// Name of the cluster: lower-case letters, digits, `-` and `.`
    name: ClusterName,

    /// How long the token is good; at most 30d
    #[arg(long, value_name = "TIME", default_value = DEFAULT_TTL, value_parser = ttl)]
    ttl: Duration,

    /// Let another cluster take over the name, with its roles
    #[arg(long)]
    replace: bool,

    /// Where the agent finds the relay, if not where it last served
    #[arg(long, value_name = "URL", value_parser = public_url)]
    public_url: Option<RelayAddress>,

    #[command(flatten)]
    place: Place,
}

/// A secret that lies about for longer than this is no longer one.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

fn ttl(text: &str) -> Result<Duration, String> {
    let ttl = duration(text)?;
    if ttl > LONGEST { Err("an enrolment token is good for 30d at most".to_owned()) } else { Ok(ttl) }
}

impl Enroll {
    pub(super) async fn run(self, now: SystemTime) -> Result<(), Report> {
        let registry = self.place.registry().await?;
        let noted = PublicAddress::noted(&registry).await?;
        let address = match (self.public_url, noted) {
            (Some(relay), noted) => PublicAddress { relay, ca_pem: noted.and_then(|noted| noted.ca_pem) },
            (None, Some(noted)) => noted,
            (None, None) => {
                return Err(Report::new(
                    Fault::ConfigInvalid,
                    "this relay never served, so its address is not known: start it, or give --public-url",
                ));
            }
        };
        let request = TokenRequest { name: self.name, ttl: self.ttl, replaces: self.replace, address };
        let (name, relay) = (request.name.clone(), request.address.relay.clone());
        let token = make_token(&registry, self.place.keys()?.identity_hash(), request, now).await?;
        print(&token.encode())?;
        eprintln!(
            "This lets one cluster in, as {name}, once, until {}, and sends its agent to {relay}. Give it to the agent in a file: --enrolment-token-file",
            moment(token.expires)
        );
        eprintln!("\n{}", next(&name));
        Ok(())
    }
}

/// What is to be done with the token: commands to paste, with what only their reader knows in capitals.
fn next(name: &ClusterName) -> String {
    format!(
        "With the cluster's own administration, and the token in the file `token` (docs/operator-guide.md has the way without Helm):

    kubectl create namespace towline --save-config
    kubectl --namespace towline create secret generic towline-agent-enrolment --from-file=token=token
    helm install towline-agent deploy/charts/towline-agent --namespace towline --set image.repository=YOUR_IMAGE \\
        --set oidc.issuerUrl=YOUR_ISSUER --set oidc.groupsClaim=groups

Once it is there, here:

    towline-relay role assign --group YOUR_GROUP --role cluster-user --cluster {name}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// README.md shows the same commands, for an issuer and a group of its own.
    #[test]
    fn what_is_to_be_pasted_is_what_the_readme_says() {
        let readme = include_str!("../../../README.md");
        let said = next(&"edge-7".parse().unwrap());
        let filled = said.replace("YOUR_ISSUER", "https://idp.example.com").replace("YOUR_GROUP", "platform");
        let commands: Vec<&str> = filled.lines().filter_map(|line| line.strip_prefix("    ")).collect();
        assert_eq!(commands.len(), 5, "{commands:?}");
        for command in commands {
            assert!(readme.contains(command), "README.md does not say {command}");
        }
    }
}
