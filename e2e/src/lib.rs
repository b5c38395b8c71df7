//! The towline programs against a real kube-apiserver, with real kubectl.
