//! The steps of the journey.

use std::time::Duration;

macro_rules! steps {
    ($($name:ident = $id:literal, $title:literal, $seconds:literal;)*) => {
        /// One step of the journey, in the order in which they are looked at.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Step { $(#[doc = $title] $name,)* }

        impl Step {
            /// Every step.
            pub const ALL: &[Step] = &[$(Step::$name,)*];

            /// The stable name that JSON has.
            pub fn id(self) -> &'static str { match self { $(Step::$name => $id,)* } }
            /// What is looked at, in a few words.
            pub fn title(self) -> &'static str { match self { $(Step::$name => $title,)* } }
            /// How long it may take. Checks know better before that; this is for what they forgot.
            pub fn within(self) -> Duration { match self { $(Step::$name => Duration::from_secs($seconds),)* } }
        }
    };
}

steps! {
    Configuration = "configuration", "settings and files", 5;
    Dns = "dns", "the relay's name", 12;
    Tcp = "tcp", "a connection to the relay's address", 12;
    Proxy = "proxy", "the proxy on the way", 12;
    Tls = "tls", "outer TLS: names, chain, who ends it", 20;
    Upgrade = "upgrade", "the upgrade to websocket", 16;
    Clock = "clock", "this machine's clock beside the relay's", 2;
    Frames = "frames", "bytes in both directions", 18;
    Relay = "relay", "the relay's identity key and version", 2;
    LargeFrames = "large-frames", "large messages in both directions", 30;
    State = "state", "the agent's data directory and Secret", 15;
    Enrolment = "enrolment", "the enrolment", 5;
    Login = "login", "the tokens", 20;
    Session = "session", "a session with the relay", 20;
    Cluster = "cluster", "the cluster at the relay, and its agent", 10;
    Credential = "credential", "the agent's own credential", 5;
    Apiserver = "apiserver", "kube-apiserver", 20;
    Rights = "rights", "what the agent's accounts may do", 30;
    Issuer = "issuer", "the identity provider's keys", 20;
    Kubelet = "kubelet", "a kubelet through kube-apiserver", 20;
    Idle = "idle", "an idle session", 120;
    Throughput = "throughput", "how much passes", 30;
    Kubeconfig = "kubeconfig", "the kubeconfig", 10;
    Port = "port", "the local port", 5;
    Agent = "agent", "what the agent finds where it is", 70;
}

impl Step {
    /// The step with this name.
    pub fn of_id(id: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|step| step.id() == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_each_step() {
        let page = include_str!("../../../docs/doctor.md");
        for step in Step::ALL {
            let row = format!("| `{}` | {}", step.id(), step.title());
            assert!(page.contains(&row), "docs/doctor.md has no row that begins with {row}");
            assert_eq!(Step::of_id(step.id()), Some(*step));
        }
    }
}
