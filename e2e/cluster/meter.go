package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Counts of one kind of request: how many, and the body bytes that went out and came in.
type traffic struct {
	Requests      int64 `json:"requests"`
	Failures      int64 `json:"failures"`
	ResponseBytes int64 `json:"response_bytes"`
	RequestBytes  int64 `json:"request_bytes"`
}

// The meter's view since its start or the last reset, by "METHOD object", "METHOD bucket" or "METHOD service".
type meter struct {
	mu     sync.Mutex
	counts map[string]*traffic
}

func (m *meter) of(operation string) *traffic {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.counts[operation] == nil {
		m.counts[operation] = &traffic{}
	}
	return m.counts[operation]
}

// operation tells apart requests for an object's content from those for a bucket (listings) by the path alone.
func operation(r *http.Request) string {
	path := r.URL.Path
	for len(path) > 0 && path[0] == '/' {
		path = path[1:]
	}
	kind := "service"
	for i := range len(path) {
		if path[i] == '/' && i+1 < len(path) {
			return r.Method + " object"
		}
		kind = "bucket"
	}
	return r.Method + " " + kind
}

type countingBody struct {
	io.ReadCloser
	bytes *int64
}

func (b countingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	atomic.AddInt64(b.bytes, int64(n))
	return n, err
}

// meterS3 stands in front of an S3 server and counts body bytes exactly. It leaves the Host header and the path as they
// are, so signatures stay valid. Counts are read as JSON from a Unix socket; a POST there sets them back to zero.
func meterS3(args []string) error {
	flags := flag.NewFlagSet("s3-meter", flag.ContinueOnError)
	listen := flags.String("listen", "", "HOST:PORT to serve clients on")
	upstream := flags.String("upstream", "", "URL of the S3 server")
	control := flags.String("control", "", "Unix socket to serve the counts on")
	if err := flags.Parse(args); err != nil {
		return err
	}
	target, err := url.Parse(*upstream)
	if err != nil || target.Host == "" {
		return fmt.Errorf("--upstream: %q is no URL", *upstream)
	}

	m := &meter{counts: map[string]*traffic{}}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme = target.Scheme
			r.Out.URL.Host = target.Host
			r.Out.Host = r.In.Host
		},
		// The client's own Accept-Encoding goes through; a transparent gzip would change what is counted.
		Transport: &http.Transport{
			DisableCompression:  true,
			MaxIdleConnsPerHost: 256,
			IdleConnTimeout:     time.Minute,
			WriteBufferSize:     256 << 10,
			ReadBufferSize:      256 << 10,
		},
		BufferPool: &buffers{},
		ModifyResponse: func(r *http.Response) error {
			t := m.of(operation(r.Request))
			atomic.AddInt64(&t.Requests, 1)
			if r.StatusCode >= 400 {
				atomic.AddInt64(&t.Failures, 1)
			}
			r.Body = countingBody{r.Body, &t.ResponseBytes}
			return nil
		},
	}
	data := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body != nil && r.Body != http.NoBody {
			r.Body = countingBody{r.Body, &m.of(operation(r)).RequestBytes}
		}
		proxy.ServeHTTP(w, r)
	})
	counts := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.mu.Lock()
		defer m.mu.Unlock()
		snapshot := map[string]traffic{}
		for name, t := range m.counts {
			snapshot[name] = traffic{
				Requests:      atomic.LoadInt64(&t.Requests),
				Failures:      atomic.LoadInt64(&t.Failures),
				ResponseBytes: atomic.LoadInt64(&t.ResponseBytes),
				RequestBytes:  atomic.LoadInt64(&t.RequestBytes),
			}
		}
		if r.Method == http.MethodPost {
			m.counts = map[string]*traffic{}
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(snapshot)
	})

	_ = os.Remove(*control)
	controlListener, err := net.Listen("unix", *control)
	if err != nil {
		return err
	}
	dataListener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	failed := make(chan error, 2)
	go func() { failed <- http.Serve(controlListener, counts) }()
	go func() { failed <- http.Serve(dataListener, data) }()
	return <-failed
}

// buffers are larger than ReverseProxy's own 32 KiB: objects here are megabytes.
type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if buffer, ok := b.pool.Get().(*[]byte); ok {
		return *buffer
	}
	return make([]byte, 256<<10)
}

func (b *buffers) Put(buffer []byte) { b.pool.Put(&buffer) }
