// The newest KubeRay that is too old for the chart, for its CRDs; nothing is built of it.
module kuberay-too-old

go 1.25.0

require github.com/ray-project/kuberay/ray-operator v1.5.1
