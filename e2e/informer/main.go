// Informer writes many changes to a few objects and checks that a client-go informer sees each of them, in order.
//
// It reads and writes with the kubeconfig in $KUBECONFIG, in its context's namespace.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

func main() {
	events := flag.Int("events", 10000, "changes in all")
	objects := flag.Int("objects", 20, "objects that they are spread over")
	within := flag.Duration("within", 3*time.Minute, "time for all of it")
	flag.Parse()
	if err := run(*events, *objects, *within); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(events, objects int, within time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	loaded := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		clientcmd.NewDefaultClientConfigLoadingRules(), &clientcmd.ConfigOverrides{})
	namespace, _, err := loaded.Namespace()
	if err != nil {
		return err
	}
	config, err := loaded.ClientConfig()
	if err != nil {
		return err
	}
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}

	seen := newSeen(events)
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0,
		informers.WithNamespace(namespace),
		informers.WithTweakListOptions(func(options *metav1.ListOptions) { options.LabelSelector = "informer=yes" }))
	informer := factory.Core().V1().ConfigMaps().Informer()
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { seen.note(object) },
		UpdateFunc: func(_, object any) { seen.note(object) },
	}); err != nil {
		return err
	}
	factory.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		return fmt.Errorf("the informer did not sync")
	}

	failures := make(chan error, objects)
	for object := range objects {
		go func() { failures <- write(ctx, client, namespace, object, events/objects) }()
	}
	for range objects {
		if err := <-failures; err != nil {
			return err
		}
	}
	select {
	case <-seen.all:
	case <-ctx.Done():
	}
	return seen.report()
}

func write(ctx context.Context, client kubernetes.Interface, namespace string, object, changes int) error {
	maps := client.CoreV1().ConfigMaps(namespace)
	current, err := maps.Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("informer-%d", object), Labels: map[string]string{"informer": "yes"}},
		Data:       map[string]string{"n": "1"},
	}, metav1.CreateOptions{})
	for n := 2; err == nil && n <= changes; n++ {
		current.Data["n"] = strconv.Itoa(n)
		current, err = maps.Update(ctx, current, metav1.UpdateOptions{})
	}
	return err
}

// seen is what the informer was told: for each object, the last number, and whether one was missed or came twice.
type seen struct {
	sync.Mutex
	wanted, count int
	last          map[string]int
	disorder      []string
	all           chan struct{}
}

func newSeen(wanted int) *seen {
	return &seen{wanted: wanted, last: map[string]int{}, all: make(chan struct{})}
}

func (s *seen) note(object any) {
	s.Lock()
	defer s.Unlock()
	changed := object.(*corev1.ConfigMap)
	n, _ := strconv.Atoi(changed.Data["n"])
	if n != s.last[changed.Name]+1 {
		s.disorder = append(s.disorder, fmt.Sprintf("%s: %d after %d", changed.Name, n, s.last[changed.Name]))
	}
	s.last[changed.Name] = n
	s.count++
	if s.count == s.wanted {
		close(s.all)
	}
}

func (s *seen) report() error {
	s.Lock()
	defer s.Unlock()
	if len(s.disorder) > 0 || s.count != s.wanted {
		return fmt.Errorf("%d of %d events; out of order: %v", s.count, s.wanted, s.disorder[:min(len(s.disorder), 10)])
	}
	fmt.Printf("%d events, each once and in order\n", s.count)
	return nil
}
