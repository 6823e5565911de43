// csi-sanity runs the upstream CSI conformance suite against the node plugin of a driver that has no controller: volumes of Forebay are
// made by its operator. What the suite needs of a controller is played by this program: each volume that it asks for is another volume of one
// Dataset. Nothing of the suite is left out.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"google.golang.org/grpc"
)

// result is what the suite reports to.
type result struct{ failed bool }

func (r *result) Fail() { r.failed = true }

func main() {
	config := sanity.NewTestConfig()
	endpoint := flag.String("endpoint", "", "socket of the plugin")
	folder := flag.String("folder", "", "a folder for staging and target paths")
	dataset := flag.String("dataset", "", "name of the Dataset")
	namespace := flag.String("namespace", "", "its namespace")
	uid := flag.String("uid", "", "its UID")
	flag.Parse()

	socket := filepath.Join(*folder, "controller.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		log.Fatal(err)
	}
	defer os.Remove(socket)
	server := grpc.NewServer()
	controller := newController(*uid, map[string]string{"namespace": *namespace, "dataset": *dataset})
	csi.RegisterControllerServer(server, controller)
	csi.RegisterIdentityServer(server, controller)
	go server.Serve(listener)

	config.Address = *endpoint
	config.ControllerAddress = socket
	config.StagingPath = filepath.Join(*folder, "staging")
	config.TargetPath = filepath.Join(*folder, "target")
	config.DialOptions = append(config.DialOptions, grpc.WithUnaryInterceptor(adapt))
	result := result{}
	sanity.Test(&result, config)
	if result.failed {
		os.Exit(1)
	}
}

// adapt makes up for two assumptions of the suite: that plugin and controller are one driver, and that volumes can be written.
func adapt(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	switch request := request.(type) {
	case *csi.NodeStageVolumeRequest:
		readOnly(request.VolumeCapability)
	case *csi.NodePublishVolumeRequest:
		readOnly(request.VolumeCapability)
	}
	err := invoke(ctx, method, request, reply, conn, options...)
	if capabilities, ok := reply.(*csi.GetPluginCapabilitiesResponse); ok && err == nil {
		capabilities.Capabilities = append(capabilities.Capabilities, controllerService)
	}
	return err
}

func readOnly(capability *csi.VolumeCapability) {
	if mode := capability.GetAccessMode(); mode != nil {
		mode.Mode = csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
	}
}
