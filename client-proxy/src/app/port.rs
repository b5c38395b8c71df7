//! The endpoint's port. Two proxies of one person's get along: each that was not told its port takes one that is free.

use towline_tunnel::fault::{Fault, Report};

use super::{Choice, off_runtime};
use crate::{
    accept::Endpoint,
    local::{ServingLock, StateFolder},
};

/// Takes the port that was named, or the usual one; where that is another proxy's of this state folder, one that is free.
///
/// # Errors
/// If the port can't be taken: because another proxy serves one of these clusters, where that is so.
pub(super) async fn take(
    named: Option<u16>,
    usual: u16,
    state: &StateFolder,
    clusters: &[Choice],
) -> Result<(Endpoint, Option<ServingLock>), Report> {
    let port = named.unwrap_or(usual);
    if port == 0 {
        return Ok((Endpoint::bind(0).await?, None));
    }
    let lock = {
        let state = state.clone();
        off_runtime(move || state.listen(port)).await?
    };
    if lock.is_none() && named.is_none() {
        already_served(state, clusters).await?;
        let endpoint = Endpoint::bind(0).await?;
        tracing::info!(usual, address = %endpoint.address(), "another towline proxy has the usual port");
        return Ok((endpoint, None));
    }
    match Endpoint::bind(port).await {
        Ok(endpoint) => Ok((endpoint, lock)),
        Err(report) => {
            if report.fault == Fault::PortBusy {
                already_served(state, clusters).await?;
            }
            Err(report)
        }
    }
}

/// Fails where another proxy serves one of these: then that is the reason, and no other port would help.
async fn already_served(state: &StateFolder, clusters: &[Choice]) -> Result<(), Report> {
    let (state, clusters) = (state.clone(), clusters.to_vec());
    off_runtime(move || {
        for choice in &clusters {
            if let Some(id) = choice.id {
                state.serve(id, &choice.label())?;
            }
        }
        Ok(())
    })
    .await
}

#[cfg(test)]
mod tests {
    use towline_tunnel::ids::ClusterId;

    use super::*;

    #[tokio::test]
    async fn two_proxies_get_along_and_what_is_in_the_way_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(&folder.path().join("state")).unwrap();
        let [mine, other] = [b"mine", b"othr"].map(|key| Choice::id(ClusterId::of_spki(key)));
        let taken = Endpoint::bind(0).await.unwrap();
        let usual = taken.address().port();
        let take = async |named, of: &Choice| take(named, usual, &state, std::slice::from_ref(of)).await;
        let fault = |taken: Result<_, Report>| taken.map(|(_, _)| ()).unwrap_err().fault;

        // Somebody else's program.
        assert_eq!(fault(take(None, &mine).await), Fault::PortBusy);
        assert_eq!(fault(take(Some(usual), &mine).await), Fault::PortBusy);

        // Another proxy of ours, which serves another cluster.
        let lock = state.listen(usual).unwrap().unwrap();
        let served = state.serve(other.id.unwrap(), "other").unwrap();
        let (endpoint, _) = take(None, &mine).await.unwrap();
        assert_ne!(endpoint.address().port(), usual);
        assert_eq!(fault(take(Some(usual), &mine).await), Fault::PortBusy);
        // The same one.
        for named in [None, Some(usual)] {
            assert_eq!(fault(take(named, &other).await), Fault::ProxyAlreadyRuns);
        }

        // It is gone, and so is what it held.
        drop((taken, lock, served));
        let (endpoint, lock) = take(None, &other).await.unwrap();
        assert_eq!(endpoint.address().port(), usual);
        assert!(state.listen(usual).unwrap().is_none());
        drop(lock);
        assert!(state.listen(usual).unwrap().is_some());
    }
}
