//! Asking the person at the terminal, if there is one.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use towline_tunnel::ids::ClusterId;

use crate::app::Confirm;

/// Asks on stderr and stdin where both are a terminal; otherwise nobody can be asked.
pub(super) fn on_terminal() -> Option<Confirm> {
    let is_terminal = io::stdin().is_terminal() && io::stderr().is_terminal();
    is_terminal.then(|| Confirm::new(ask))
}

fn ask(name: &str, cluster: ClusterId) -> bool {
    let question = format!(
        "The relay says that {name} is the cluster\n\n    {cluster}\n\n\
         That is only as true as the relay is honest. Compare it with what `towline-agent id` prints in the \
         cluster.\nIs it right? It will be remembered. (yes/no) "
    );
    let mut answer = String::new();
    let asked = io::stderr()
        .write_all(question.as_bytes())
        .and_then(|()| io::stderr().flush())
        .and_then(|()| io::stdin().lock().read_line(&mut answer));
    asked.is_ok() && answer.trim() == "yes"
}
